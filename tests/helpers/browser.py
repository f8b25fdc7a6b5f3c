"""Pages in a browser that emulates a screen."""

PHONE, DESKTOP = 390, 1280  # Widths in pixels.


class BrowserPage:
  """A page in a browser."""

  def __init__(self, browser, address, width, scheme="light"):
    self.browser = browser
    # A window has a minimum width, but an emulated screen has none.
    size = {"width": width, "height": 900, "deviceScaleFactor": 1}
    self.emulate("DeviceMetricsOverride", **size, mobile=width == PHONE)
    self.emulate("TouchEmulationEnabled", enabled=width == PHONE)
    media = {"prefers-color-scheme": scheme}
    # Elements stand still while they are clicked.
    media["prefers-reduced-motion"] = "reduce"
    media = [{"name": name, "value": value} for name, value in media.items()]
    self.emulate("EmulatedMedia", features=media)
    browser.get(address)

  def emulate(self, name, **arguments):
    self.browser.execute_cdp_cmd(f"Emulation.set{name}", arguments)

  def run(self, script, *arguments):
    return self.browser.execute_script(script, *arguments)

  def all(self, selector):
    return self.browser.find_elements("css selector", selector)

  def one(self, selector):
    (element,) = self.all(selector)
    return element

  def text(self, selector):
    return self.one(selector).text

  def fits(self):
    """Returns True if the page is not wider than the window."""
    root = "document.documentElement"
    return self.run(f"return {root}.scrollWidth <= window.innerWidth")
