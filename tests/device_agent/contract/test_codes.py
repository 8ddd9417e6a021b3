from device_agent.contract.codes import QUARANTINING, RETRYABLE, Reason


def test_what_may_be_tried_again_is_not_quarantined() -> None:
    assert not RETRYABLE & QUARANTINING


def test_a_success_is_neither() -> None:
    assert Reason.NONE not in RETRYABLE | QUARANTINING
