// What a page does beyond links and forms: theme, copying, dialogs, the menu, ticking many rows.
"use strict";
document.documentElement.classList.add("js");

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const copy = on("[data-copy]");
  if (copy) {
    const source = document.getElementById(copy.dataset.copy);
    navigator.clipboard.writeText(source.textContent.trim()).then(() => say(copy, "Copied"));
  }
  const opener = on("[data-opens]");
  if (opener) {
    event.preventDefault();
    document.getElementById(opener.dataset.opens).showModal();
  }
  const closer = on("[data-closes]");
  if (closer) closer.closest("dialog").close();
  const menu = on("[data-menu]");
  if (menu) {
    const open = document.querySelector(".rail").classList.toggle("open");
    menu.setAttribute("aria-expanded", String(open));
  }
  const theme = on("[data-theme-next]");
  if (theme) turnTheme();
});

function say(button, text) {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 1500);
}

function turnTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  document.cookie = `theme=${next}; path=/; max-age=31536000; samesite=lax`;
  dispatchEvent(new Event("themechange"));
}

// A dialog that the address asks for (?new_key=...) is open when the page comes.
document.querySelectorAll("dialog[data-open]").forEach((dialog) => {
  dialog.removeAttribute("open");
  dialog.showModal();
});

// A form that asks first.
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.asks || event.target.dataset.asks;
  if (question && !confirm(question)) event.preventDefault();
});

// One box ticks all; a button that needs ticked rows says how many there are.
document.addEventListener("change", (event) => {
  const box = event.target;
  if (box.matches("[data-ticks-all]")) {
    box.closest("form").querySelectorAll("tbody [type=checkbox]").forEach((one) => { one.checked = box.checked; });
  }
  const form = box.closest?.("form[data-ticked]");
  if (form) countTicked(form);
  if (box.matches("[data-submits]")) box.form.requestSubmit();
});

function countTicked(form) {
  const ticked = form.querySelectorAll("tbody [type=checkbox]:checked").length;
  const most = Number(form.dataset.most || Infinity);
  form.querySelectorAll("[data-needs-ticked]").forEach((button) => {
    button.disabled = ticked < Number(button.dataset.needsTicked) || ticked > most;
  });
  form.querySelectorAll("[data-ticked-count]").forEach((one) => { one.textContent = String(ticked); });
}
document.querySelectorAll("form[data-ticked]").forEach(countTicked);
