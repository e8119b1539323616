// Tabs of the pictures: without a script all of them stand side by side.

// The candidate over the reference, uncovered as far as one likes; only where there are both.
function pictureSlider(viewer) {
  const list = viewer.querySelector('[role="tablist"]'), panel = viewer.querySelector(".shots");
  const pair = ["reference", "candidate"].map((side) => panel.querySelector(`.${side} img`));
  if (!pair.every(Boolean)) return;
  make("button", { type: "button", role: "tab", id: panel.id + "-slider", "data-view": "slider", "aria-controls": panel.id }, list, "Slider");
  const figure = make("figure", { class: "shot slider" }, panel), box = make("div", { class: "compare" }, figure);
  box.append(...pair.map((picture) => picture.cloneNode()));
  const input = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of the picture is the reference’s, in percent" }, figure);
  const caption = make("figcaption", {}, figure);
  for (const words of ["Reference", "Candidate"]) make("b", {}, caption, words);
  input.oninput = () => box.style.setProperty("--at", input.value + "%");
}

function pictureTabs(viewer) {
  pictureSlider(viewer);
  const list = viewer.querySelector('[role="tablist"]'), tabs = [...list.querySelectorAll('[role="tab"]')], panel = viewer.querySelector(".shots");
  function choose(tab, focus) {
    for (const one of tabs) {
      one.setAttribute("aria-selected", String(one === tab));
      one.tabIndex = one === tab ? 0 : -1;
    }
    viewer.dataset.view = tab.dataset.view;
    panel.setAttribute("aria-labelledby", tab.id);
    if (focus) tab.focus();
  }
  list.hidden = false;
  panel.setAttribute("role", "tabpanel");
  panel.tabIndex = 0;
  list.onclick = (event) => { const tab = event.target.closest('[role="tab"]'); if (tab) choose(tab); };
  list.onkeydown = (event) => {
    const now = tabs.indexOf(event.target), to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs[(to + tabs.length) % tabs.length], true);
  };
  choose(tabs[0]);
}

document.querySelectorAll(".viewer").forEach(pictureTabs);
