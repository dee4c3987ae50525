"use strict";
(function () {
  const data = document.getElementById("matches");
  const input = document.getElementById("threshold");
  if (data && input) {
    const matches = JSON.parse(data.textContent);
    const put = (id, text) => { const cell = document.getElementById(id); if (cell) cell.textContent = text; };
    const share = (part, whole) => (whole ? (part / whole).toFixed(3) : "–");
    const counts = (one, step) => {
      let found = 0, wrong = 0;
      for (const [score, right, bad] of one.steps) {
        if (score < step) break;
        found += right;
        wrong += bad;
      }
      return [found, wrong, one.objects - found];
    };
    const write = (name, [found, wrong, missed]) => {
      put(name + "-found", found);
      put(name + "-wrong", wrong);
      put(name + "-missed", missed);
      put(name + "-precision", share(found, found + wrong));
      put(name + "-recall", share(found, found + missed));
      put(name + "-f1", share(2 * found, 2 * found + wrong + missed));
      put(name + "-ap", share(found, found + wrong + missed));
    };
    const update = () => {
      const step = Math.round(Number(input.value) * matches.scale);
      const total = [0, 0, 0];
      matches.classes.forEach((one, k) => {
        const own = counts(one, step);
        own.forEach((value, n) => { total[n] += value; });
        write("c" + k, own);
      });
      write("all", total);
      put("threshold-now", Number(input.value).toFixed(3));
    };
    input.addEventListener("input", update);
    update();
  }
  const dialog = document.getElementById("large");
  if (dialog) {
    const image = dialog.querySelector("img");
    const text = dialog.querySelector("p");
    for (const button of document.querySelectorAll("button.enlarge")) {
      button.addEventListener("click", () => {
        const small = button.querySelector("img");
        image.src = small.src;
        image.alt = small.alt;
        text.textContent = small.alt;
        dialog.showModal();
      });
    }
    dialog.addEventListener("click", () => dialog.close());
  }
})();
