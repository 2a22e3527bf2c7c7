"""Makes docs/pictures: tabs of TensorBoard, the status page of `karpa-tf serve`, the pole, curves of seeds.

    python scripts/screenshots.py             trains a few small runs first: some minutes on two cores
    python scripts/screenshots.py --logs L    shows those of L: dqn, mnist-mlp, and q-learning with --seeds
    python scripts/screenshots.py --chat S    the chat page alone, before S, the savedmodels that
                                              examples/customer-service has left
    python scripts/screenshots.py --only FILE NAME    the last picture of a film, or an .html page, alone

It needs Chromium on the PATH, and playwright, which the extra `dev` brings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
MOST_BYTES = 150_000
KARPA = [sys.executable, "-m", "karpa_tf"]
LAKE = ["--env", "FrozenLake-v1", "--slippery", "false", "--episodes", "2000", "--initial_value", "0.5"]
RUNS = [
    ["dqn", "--seeds", "0:3"],
    ["mnist-mlp", "--epochs", "8", "--learning_rate", "0.002"],
    ["mnist-mlp", "--epochs", "8", "--learning_rate", "0.01"],
    ["q-learning", *LAKE, "--gamma", "0.95", "--seeds", "0:5"],
]


def karpa(*words: str | Path) -> dict[str, Any]:
    """Runs a command and returns its JSON object."""
    command = [*KARPA, *map(str, words), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


@contextmanager
def serving(*words: str | Path, cwd: Path | None = None) -> Iterator[dict[str, Any]]:
    """Starts a command that serves, and gives the JSON object that it prints when it is ready."""
    command = [*KARPA, *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stdout
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def has_read(url: str, runs: set[str]) -> bool:
    """Whether TensorBoard has read what is written last of these runs."""
    with urllib.request.urlopen(f"{url}data/plugin/scalars/tags") as response:
        tags = json.load(response)
    return all(any(tag[:6] == "final/" for tag in tags.get(f"{run}/hparams", ())) for run in runs)


def shoot(page: Page, name: str, **options: Any) -> None:
    """Saves what a page shows, in 128 colours, once nothing is loaded any more."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(3000)  # what is loaded is drawn bit by bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shot.png"
        page.screenshot(path=path, animations="disabled", **options)
        save(Image.open(path), name)


def save(picture: Image.Image, name: str) -> None:
    path = PICTURES / f"{name}.png"
    picture.convert("RGB").quantize(128).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(Path.cwd())}: {size:,} bytes")
    assert size < MOST_BYTES


def shoot_tensorboard(page: Page, logs: Path, runs: set[str]) -> None:
    # The page shows the name of the folder.
    with serving("tensorboard", "--logs", logs.name, "--port", free_port(), cwd=logs.parent) as ready:
        url = ready["url"]
        while not has_read(url, runs):
            time.sleep(0.2)
        for tab, drawn in (
            ("scalars", "tf-scalar-card path.line"),
            ("custom_scalars", "tf-custom-scalar-multi-line-chart-card path.line"),
            ("hparams", "tf-hparams-table-view vaadin-grid"),
        ):
            page.goto("about:blank")  # another tab of the same address is not loaded anew
            page.goto(f"{url}#{tab}")
            page.locator(drawn).first.wait_for(state="attached")
            shoot(page, f"tensorboard-{tab.replace('_', '-')}")


def shoot_status_page(page: Page, models: Path) -> None:
    port = free_port()
    page.set_viewport_size({"width": 1000, "height": 900})
    with serving("serve", models, "--port", free_port(), "--rest_api_port", port):
        for model in ("dqn", "mnist-mlp"):
            url = f"http://localhost:{port}/v1/models/{model}"
            karpa("load-test", url, "--requests", "200", "--seconds", "60")
        page.goto(f"http://localhost:{port}/")
        shoot(page, "status-page")


def shoot_chat(page: Page, models: Path) -> None:
    """Asks models of the example of customer service what they know and what they do not."""
    rest, port = free_port(), free_port()
    script = Path(__file__).parents[1] / "examples" / "customer-service" / "chat.py"
    page.set_viewport_size({"width": 420, "height": 620})
    with serving("serve", models, "--port", free_port(), "--rest_api_port", rest):
        command = [sys.executable, script, f"http://127.0.0.1:{rest}", "--port", port]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        try:
            process.stdout.readline()  # it is ready
            page.goto(f"http://127.0.0.1:{port}/")
            asked = ("turn on the desk lamp", "what is the weather like at the beach", "sing me a poem")
            for number, question in enumerate(asked):
                page.get_by_label("Your question").fill(question)
                page.keyboard.press("Enter")
                page.locator("#log p").nth(2 * number + 1).wait_for()
            shoot(page, "customer-service")
        finally:
            process.terminate()
            process.wait()


def last_frame(film: Path) -> Image.Image:
    with Image.open(film) as frames:
        frames.seek(frames.n_frames - 1)
        return frames.convert("RGB")


def chromium(playwright: Playwright) -> Browser:
    arguments = ["--no-sandbox", "--disable-gpu"]
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)


def shoot_file(file: Path, name: str) -> None:
    if file.suffix == ".gif":
        save(last_frame(file), name)
        return
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(file.as_uri())
        shoot(page, name)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--logs", type=Path, help="Runs that are there already.")
    parser.add_argument("--chat", type=Path, help="The chat page alone, before these models.")
    parser.add_argument("--only", nargs=2, metavar=("FILE", "NAME"), help="A picture of a file, alone.")
    args = parser.parse_args()
    given = args.logs and args.logs.resolve()
    PICTURES.mkdir(exist_ok=True)
    if args.only:
        shoot_file(Path(args.only[0]).resolve(), args.only[1])
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = chromium(playwright)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)
        if args.chat:
            shoot_chat(page, args.chat)
            return
        logs = given or Path(folder) / "logs"
        for words in () if given else RUNS:
            karpa("train", *words, "--logs", logs)
        save(Image.open(next(logs.glob("q-learning/seeds-*.png"))), "seeds")
        gif = Path(folder) / "pole.gif"
        karpa("play", "dqn/latest", "--logs", logs, "--gif", gif, "--frames", "40")
        save(last_frame(gif).resize((300, 200)), "pole")
        models = Path(folder) / "savedmodels"
        karpa("export", "mnist-mlp/latest", "--logs", logs, "--to", models)
        karpa("export", "dqn/latest", "--logs", logs, "--to", models, "--policy_saver", "false")
        runs = {f"{path.parent.parent.name}/{path.parent.name}" for path in logs.glob("*/*/metrics.json")}
        shoot_tensorboard(page, logs, runs)
        shoot_status_page(page, models)
        browser.close()


if __name__ == "__main__":
    main()
