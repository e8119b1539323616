// Tabs of the pictures: without a script all of them stand side by side.

function pictureTabs(viewer) {
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
