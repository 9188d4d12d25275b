import threading

import pytest

import gradpath as gp


def test_default_is_soft():
    assert gp.current_mode() == "soft"


def test_inner_mode_wins_and_the_outer_one_comes_back():
    with gp.mode("hard"):
        with gp.mode("straight_through"):
            assert gp.current_mode() == "straight_through"
        assert gp.current_mode() == "hard"
    assert gp.current_mode() == "soft"


def test_mode_is_restored_after_an_exception():
    with pytest.raises(RuntimeError), gp.mode("hard"):
        raise RuntimeError
    assert gp.current_mode() == "soft"


def test_decorator_runs_every_call_in_the_mode():
    @gp.mode("hard")
    def deployed():
        return gp.current_mode()

    assert [deployed(), deployed(), gp.current_mode()] == ["hard", "hard", "soft"]


def test_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(gp.InputError, match="soft, hard, straight_through"):
        gp.mode("sotf")


def test_mode_belongs_to_its_thread():
    seen = []
    with gp.mode("hard"):
        thread = threading.Thread(target=lambda: seen.append(gp.current_mode()))
        thread.start()
        thread.join()
    assert seen == ["soft"]
