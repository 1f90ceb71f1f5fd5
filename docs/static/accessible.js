// What furo leaves out for readers with a keyboard or a screen reader; tests/test_site.py checks the built pages with axe-core.
document.addEventListener("DOMContentLoaded", () => {
  // Captions of the navigation are headings without a level.
  for (const caption of document.querySelectorAll('p.caption[role="heading"]:not([aria-level])')) {
    caption.setAttribute("aria-level", "2");
  }
  // Two landmarks of one kind need names.
  for (const [part, name] of [[".sidebar-drawer", "Pages"], [".toc-drawer", "This page"]]) {
    document.querySelector(part)?.setAttribute("aria-label", name);
  }
  // Code and tables that are wider than the page can be scrolled by the keyboard only if they can have the focus.
  const reach = () => {
    for (const box of document.querySelectorAll("pre, .table-wrapper, .cell_output .output")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  reach();
  addEventListener("load", reach);
  addEventListener("resize", reach);
});
