"""Headless Chromium, for the tests marked ``browser``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SCREENS = {"laptop": (1280, 900), "phone": (390, 844), "small phone": (320, 600)}


class Browser:
    """Chromium with one page open."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        self.driver = webdriver.Chrome(options, service)

    def show(self, page: Path | str, screen: str = "laptop", dark: bool = False) -> None:
        """Open a page, of a file or an address, anew."""
        width, height = SCREENS[screen]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 640}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.theme("dark" if dark else "light")
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def theme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def value_of(self, expression: str) -> Any:
        return self.run(f"return {expression}")

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def enter(self, identity: str, value: str) -> None:
        """What a user's typing, choosing or sliding does to a field."""
        code = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        self.run(code + "e.dispatchEvent(new Event('input', {bubbles: true}))", identity, value)

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        code = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        texts: list[str] = self.run(code, selector)
        return texts

    def console(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log("browser")
        return entries
