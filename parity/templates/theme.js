"use strict";
// The button that changes between the system's theme, light and dark.

function theme() {
  const button = document.getElementById("theme"), names = ["system", "light", "dark"];
  let now = 0;
  button.hidden = false;
  button.onclick = () => {
    now = (now + 1) % names.length;
    document.documentElement.dataset.theme = names[now];
    button.textContent = "Theme: " + names[now];
  };
}
