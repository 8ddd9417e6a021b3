"""A trial: the candidate is served and watched until the gate says what it is."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..contract.codes import Reason
from ..errors import UpdateError
from .events import Event, Failed, Healthy
from .facts import Job
from .health import Gate, Trial, Verdict
from .ports import Models


async def watch(
    models: Models, job: Job, path: Path, trial: Trial, activate_s: float,
    clock: Callable[[], float], active: Callable[[], None],
) -> Event:  # fmt: skip
    """Activate the candidate and watch it.

    Args:
        models: what is served.
        job: whose candidate it is.
        path: its bundle.
        trial: when it has passed.
        activate_s: how long it may take to be in memory.
        clock: monotonic, seconds.
        active: called once it answers.

    Returns:
        ``Healthy`` or ``Failed``, with the figures.
    """
    number = job.number
    try:
        async with asyncio.timeout(activate_s):
            await models.activate(job.goal.held, path)
    except UpdateError as error:
        return Failed(number, error.reason, error.text, error.evidence)
    except TimeoutError:
        text = f"it was not in memory within {activate_s:g} s"
        return Failed(number, Reason.HUNG, text)
    active()
    verdict = await _watched(models, trial, clock)
    if verdict.reason is Reason.NONE:
        return Healthy(number, verdict.evidence)
    return Failed(number, verdict.reason, verdict.text, verdict.evidence)


async def _watched(models: Models, trial: Trial, clock: Callable[[], float]) -> Verdict:
    first = models.vitals()
    if first is None:
        return Verdict(Reason.LOAD_FAILED, "it is not served any more", {})
    gate = Gate(trial, clock(), first.rss_bytes)
    rechecking = asyncio.create_task(_rechecking(models, gate))
    try:
        while True:
            await asyncio.wait([rechecking], timeout=trial.look_s)
            vitals = models.vitals()
            if vitals is None:
                return Verdict(Reason.LOAD_FAILED, "it is not served any more", {})
            found = gate.judge(vitals, clock())
            if found is not None:
                return found
            if rechecking.done():
                error = rechecking.result()
                evidence = {**gate.evidence(vitals, clock()), **error.evidence}
                return Verdict(error.reason, error.text, evidence)
    finally:
        rechecking.cancel()
        with suppress(asyncio.CancelledError):
            await rechecking


async def _rechecking(models: Models, gate: Gate) -> UpdateError:
    """Ask golden vectors again and again; what was wrong at last."""
    late_s = gate.trial.recheck_late_s
    while True:
        try:
            async with asyncio.timeout(late_s):
                asked = await models.recheck()
        except UpdateError as error:
            return error
        except TimeoutError:
            text = f"its golden vectors were not answered within {late_s:g} s"
            return UpdateError(Reason.HUNG, text)
        gate.rechecks += asked
        await asyncio.sleep(gate.trial.recheck_s)
