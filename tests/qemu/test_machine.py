"""The whole machine: what a job finds in it, and what comes back of it."""

import armbundles
import pytest
from machines import Drive, Machine, make_ext4

pytestmark = pytest.mark.qemu
PYTHON = "/opt/edgeml-agent/bin/python3"
AGENT = ("PATH=/opt/edgeml-agent/bin:/usr/bin:/bin", "ORT_DISABLE_TELEMETRY=1")
USER = "10001:10001"


def test_a_job_has_its_files_and_its_exit_code_and_output_come_back(machine: Machine):
    done = machine.run(
        ["sh", "-c", "uname -m; cat note; echo no >&2; exit 7"],
        files={"note": b"two\nlines"},
    )
    assert (done.code, done.out) == (7, "aarch64\ntwo\nlinesno\n")


def test_the_memory_and_the_processor_are_the_targets(machine: Machine):
    done = machine.run(["cat", "/proc/meminfo", "/proc/cpuinfo"])
    total = int(done.out.split("MemTotal:")[1].split()[0]) * 1024
    assert 0.9 * machine.memory_bytes < total < machine.memory_bytes == 1 << 30
    assert "0xd08" in done.out and "asimddp" not in done.out  # Cortex-A72


def test_who_takes_more_memory_than_there_is_is_killed(machine: Machine, root: Drive):
    done = machine.run([PYTHON, "-c", "bytearray(1300 << 20)"], root=root)
    assert done.code in (1, 137)  # refused, or killed when the pages were touched
    assert done.code == 137 or "MemoryError" in done.out


def test_the_check_passes_on_it(machine: Machine, root: Drive):
    done = machine.run(
        ["edgeml-agent", "check", "linear.edgeml"],
        files={"linear.edgeml": armbundles.bundle("onnxruntime")},
        root=root, environment=AGENT, user=USER,
    )  # fmt: skip
    assert done.code == 0, done.out
    assert "linear 1.0.0 for rpi4: ok" in done.out and "Cortex-A72" in done.out


def test_a_bundle_for_a_later_processor_is_refused(machine: Machine, root: Drive):
    isa = armbundles.ARM.model_copy(update={"requires": ("asimddp",)})
    done = machine.run(
        ["edgeml-agent", "check", "linear.edgeml"],
        files={"linear.edgeml": armbundles.bundle("onnxruntime", isa=isa)},
        root=root, environment=AGENT, user=USER,
    )  # fmt: skip
    assert done.code == 3, done.out
    assert "asimddp" in done.out


def test_the_agent_serves_on_it_and_stops(machine: Machine, root: Drive):
    script = """\
edgeml-agent run --bundle linear.edgeml --state /tmp/state --log-level warning > ready &
agent=$!
until grep -q ready: ready; do kill -0 $agent || exit 9; /run/busybox sleep 0.1; done
edgeml-agent status --state /tmp/state --quiet || exit 8
/run/busybox wget -q -O - http://127.0.0.1:8000/v2/models/linear/ready || exit 7
kill $agent
wait $agent
"""
    done = machine.run(
        ["/run/busybox", "sh", "-c", f"cp linear.edgeml /tmp; cd /tmp; {script}"],
        files={"linear.edgeml": armbundles.bundle("onnxruntime")},
        root=root, environment=AGENT, user=USER,
    )  # fmt: skip
    assert done.code == 0, done.out


def test_what_it_writes_to_a_disk_is_there_at_the_next_boot(machine: Machine):
    disk = make_ext4(machine.work / "kept.img", 32 << 20)
    assert machine.run(["sh", "-c", "echo kept > /mnt/note"], data=disk).code == 0
    assert machine.run(["cat", "/mnt/note"], data=disk).out == "kept\n"


def test_its_root_is_only_written_when_that_is_asked_for(machine: Machine, root: Drive):
    write = ["/run/busybox", "touch", "/etc/x"]
    done = machine.run(write, root=root)
    assert done.code != 0 and "Read-only" in done.out


def test_a_machine_that_hangs_is_stopped_and_its_console_shown(machine: Machine):
    with pytest.raises(RuntimeError, match="not done in 6 s"):
        machine.run(["sleep", "100"], limit_s=6)


def test_a_disk_without_a_file_system_is_an_error(machine: Machine):
    empty = machine.work / "empty.img"
    empty.write_bytes(bytes(1 << 20))
    done = machine.run(["true"], data=Drive(empty))
    assert done.code == 125 and "edgedata: cannot be mounted" in done.out
