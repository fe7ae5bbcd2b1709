"use strict";

// Buttons that copy the text of the element they name; without this script there are none.
for (const button of document.querySelectorAll("button.copy")) {
  const label = button.firstChild;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    const copied = (await written(source.textContent)) || chosen(source);
    label.textContent = copied ? "Copied" : "Press Ctrl+C";
    document.getElementById("told").textContent = label.textContent;
    setTimeout(() => { label.textContent = "Copy"; }, 2000);
  });
}

async function written(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // an old browser, or a page that may not
  }
}

// The older way: select the text, for the browser or the reader to copy.
function chosen(source) {
  getSelection().selectAllChildren(source);
  return document.execCommand("copy");
}

// Paper can't be clicked: recipes and provenance are printed, whether open or not.
addEventListener("beforeprint", () => {
  for (const it of document.querySelectorAll("details.printed")) it.open = true;
});
