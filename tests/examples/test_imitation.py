import pytest

from gradpath.examples import imitation


def test_the_model_comes_closer_to_the_expert():
    short, longer = (imitation.imitate(0, count, 1e-2, 5, 42) for count in (1, 300))
    assert longer["iterations"] == 300
    assert longer["model_error"] < 0.75 * short["model_error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_system_is_found_from_seven_of_eight_guesses():
    metrics = imitation.main()
    assert metrics["found"] >= 7
