"""The page of a real agent in a real browser: a sensor on a serial port, a fault, and a person who says that it is true."""

import re
import socket
from pathlib import Path

import pytest
from browser import browser, opened
from mosquitto import Mosquitto, free_port, until
from playwright.sync_api import expect
from small_bundle import build
from test_agent import agent, configure, recording, send

from deploy.machine import SerialPort


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_person_sees_what_is_amiss_and_says_so(tmp_path: Path, mosquitto: Mosquitto) -> None:
    web_port, port = free_port(), SerialPort(tmp_path / "tty")
    web = f'[web]\nport = {web_port}\ntoken = "0123456789abcdef"\n'
    config = configure(tmp_path, build(tmp_path / "small.amiss"), mosquitto.port, web)
    with agent(config), browser() as on:
        until(lambda: answers(web_port), 20)
        with opened(on, f"http://127.0.0.1:{web_port}/", 390) as seen:
            page, says = seen.page, seen.page.locator("article[data-stream=s] .says")
            expect(page.locator("#link")).to_have_text("live")
            send(port, recording())
            expect(says).to_contain_text("Something is amiss since", timeout=20_000)
            expect(page.locator("svg.big .line")).to_have_attribute("d", re.compile("^M"))
            expect(page.locator(".glances svg").first).to_be_visible()
            page.get_by_role("button", name="Confirmed").first.click()
            page.get_by_role("textbox", name="Token").fill("0123456789abcdef")
            page.keyboard.press("Enter")
            expect(page.locator("#episodes .given")).to_have_text("✓ You said: confirmed", timeout=10_000)
            page.locator("summary").click()
            page.get_by_role("button", name="15 min").click()
            expect(page.locator("article .outcome")).to_contain_text("Maintenance has begun")
            assert (seen.requests, seen.complaints) == ([], [])
