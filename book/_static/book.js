// `bookReady` resolves once the page is laid out, its maths typeset and its boxes reachable: tests wait for it.
window.bookReady = new Promise((resolve) => {
  // Markup of the theme and of Sphinx that a screen reader would misread.
  function mendRoles() {
    // Buttons whose spoken name lacks the names inside them.
    for (const button of document.querySelectorAll(".search-button-field, summary"))
      button.removeAttribute("aria-label");
    for (const button of document.querySelectorAll(".theme-switch-button"))
      button.ariaLabel = "Color mode: Light, Dark or System Settings";
    // A signature's parameters are set as a list of definitions without terms.
    for (const part of document.querySelectorAll("dt.sig dl, dt.sig dd")) part.role = "presentation";
    for (const entry of document.querySelectorAll(".citation-list > .citation")) entry.role = "listitem";
  }

  // A table keeps its own display, which carries its meaning for a screen reader, and a figure its legible size:
  // a box around it scrolls.
  function boxWideThings() {
    for (const wide of document.querySelectorAll("article table, article figure img")) {
      const box = document.createElement("div");
      box.className = "scroll-box";
      wide.replaceWith(box);
      box.append(wide);
    }
  }

  // No line starts with the comma that follows a formula.
  function holdPunctuation() {
    for (const formula of document.querySelectorAll("span.math")) {
      if (formula.offsetWidth > 160) continue; // px: a long formula must be free to scroll
      const mark = formula.nextSibling?.nodeType === Node.TEXT_NODE && /^[.,;:!?)]+/.exec(formula.nextSibling.data)?.[0];
      if (!mark) continue;
      formula.nextSibling.deleteData(0, mark.length);
      const held = document.createElement("span");
      held.style.whiteSpace = "nowrap";
      formula.replaceWith(held);
      held.append(formula, mark);
    }
  }

  // A box that scrolls sideways must be reachable from the keyboard; whether one does depends on the width.
  function reachScrollingBoxes() {
    for (const box of document.querySelectorAll("mjx-container, .highlight pre, .output, .scroll-box")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }

  window.addEventListener("load", async () => {
    mendRoles();
    boxWideThings();
    await window.MathJax?.startup?.promise;
    holdPunctuation();
    reachScrollingBoxes();
    window.addEventListener("resize", reachScrollingBoxes);
    resolve();
  });
});
