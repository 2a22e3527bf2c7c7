"""`karpa-tf play`: films of a policy."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image

from karpa_tf.errors import UserError
from karpa_tf.recipe import all_recipes
from karpa_tf.reports.pictures import write_film


def frames_of(path: Path, duration: int) -> list[np.ndarray]:
    """The pictures of a GIF, each of so many milliseconds; those that are alike are stored once."""
    with Image.open(path) as film:
        frames = []
        for number in range(getattr(film, "n_frames", 1)):
            film.seek(number)
            assert film.info["duration"] % duration == 0
            frames += [np.asarray(film.convert("RGB"))] * (film.info["duration"] // duration)
        return frames


def test_a_table_is_filmed(frozen, karpa, tmp_path) -> None:
    gif = tmp_path / "lake.gif"
    result = karpa("play", frozen / "q-learning" / "1", "--gif", gif, "--episodes", 2, "--seed", 7, "--json")
    assert result.status == 0, result.err
    report = result.json
    assert report["path"] == str(gif) and report["run"] == str(frozen / "q-learning" / "1")
    # The optimum on ice that does not slip: six steps to the goal.
    assert report["returns"] == [1.0, 1.0] and report["lengths"] == [6, 6]
    frames = frames_of(gif, duration=250)  # the environment says four pictures a second
    assert len(frames) == 2 * (6 + 1)
    with gymnasium.make("FrozenLake-v1", is_slippery=False, render_mode="rgb_array") as env:
        env.reset(seed=7)
        first = np.asarray(env.render())
    for place in (0, 7):
        assert np.abs(frames[place].astype(int) - first).mean() < 0.5, "as drawn, but for 256 colours"
    assert np.abs(frames[6].astype(int) - first).mean() > 1
    assert [path.name for path in tmp_path.iterdir()] == ["lake.gif"]


def test_a_film_has_a_bound_and_a_speed(frozen, karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = karpa("play", frozen / "sarsa" / "1", "--frames", 3, "--fps", 10)
    assert result.status == 0, result.err
    assert "play.gif: 3 pictures, 4 later ones left out (--frames 3)" in result.out
    assert "seed 1000000000: return 1 in 6 steps" in result.out, "played to its end all the same"
    assert len(frames_of(tmp_path / "play.gif", duration=100)) == 3


def test_dqn_is_filmed_as_evaluate_plays(balanced, karpa, tmp_path) -> None:
    gif = tmp_path / "pole.gif"
    result = karpa("play", balanced, "--gif", gif, "--frames", 8, "--json")
    assert result.status == 0, result.err
    assert result.json["returns"] == result.json["lengths"], "CartPole gives 1 a step"
    frames = frames_of(gif, duration=20)
    assert len(frames) == 8 and all(frame.shape == (400, 600, 3) for frame in frames)
    assert any((a != b).any() for a, b in itertools.pairwise(frames))


def test_what_cannot_be_played_or_written_is_a_sentence(
    frozen, trained, karpa, tmp_path, monkeypatch
) -> None:
    run = frozen / "q-learning" / "1"
    result = karpa("play", trained)
    players = [name for name, recipe in all_recipes().items() if recipe.about.play]
    assert result.status == 2 and players == ["dqn", "q-learning", "sarsa"]
    assert "play does not go with mlm-gru; it goes with dqn, q-learning, sarsa." in result.err
    result = karpa("play", run, "--gif", tmp_path / "film.png")
    assert result.status == 2 and "--gif takes a file that ends in .gif or .mp4" in result.err
    result = karpa("play", run, "--gif", tmp_path / "no" / "film.gif")
    assert result.status == 2 and "cannot be written: No such file or directory" in result.err
    monkeypatch.setenv("PATH", str(tmp_path))
    result = karpa("play", run, "--gif", tmp_path / "film.mp4")
    assert result.status == 2 and "needs the program ffmpeg, which is not on the PATH" in result.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """A program of that name, which a shell script stands for."""

    def make(script: str) -> None:
        path = tmp_path / "bin" / "ffmpeg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def test_an_mp4_is_what_ffmpeg_makes_of_the_pictures(ffmpeg, tmp_path) -> None:
    ffmpeg(
        'echo "$@" > words; for last; do :; done; exec cat > "$last"'.replace("words", f"{tmp_path}/words")
    )
    pictures = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), np.uint8)
    assert write_film(tmp_path / "film.mp4", iter(pictures), 25) == 5
    assert (tmp_path / "film.mp4").read_bytes() == pictures.tobytes()
    assert "-f rawvideo -pix_fmt rgb24 -s 6x4 -r 25 -i -" in (tmp_path / "words").read_text()


@pytest.mark.parametrize(
    "script", ["echo no such codec >&2; exit 1", "cat > /dev/null; echo no codec >&2; exit 1"]
)
def test_what_ffmpeg_says_is_passed_on(ffmpeg, tmp_path, script) -> None:
    ffmpeg(script)
    pictures = np.zeros((200, 40, 60, 3), np.uint8)
    with pytest.raises(UserError, match=r"ffmpeg could not write the film: no .*codec"):
        write_film(tmp_path / "film.mp4", pictures, 25)
    assert not list(tmp_path.glob("*.mp4")) and not list(tmp_path.glob(".tmp*"))


def test_a_gif_is_no_faster_than_browsers_show(tmp_path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    for fps, duration in ((200, 20), (50, 20), (30, 30), (4, 250)):
        assert write_film(tmp_path / "film.gif", pictures, fps) == 3
        with Image.open(tmp_path / "film.gif") as film:
            assert film.info["duration"] == duration
