const bytes = id => {
  const t = document.getElementById(id);
  return t
    ? Uint8Array.from(atob(t.textContent.trim()), c => c.charCodeAt(0))
    : null;
};
const place = new Uint16Array(bytes("place").buffer);

document.querySelectorAll("[data-codes]").forEach(card => {
  const codes = new Uint16Array(bytes(card.dataset.codes).buffer),
    canvas = card.querySelector("canvas");
  card.querySelectorAll("button").forEach(button =>
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      card.querySelectorAll("button").forEach(b =>
        b.setAttribute("aria-pressed", on && b === button));
      const size = canvas.width = canvas.height = 1012,
        pen = canvas.getContext("2d");
      pen.clearRect(0, 0, size, size);
      if (!on) return;
      pen.fillStyle = "rgba(255,255,255,.86)";
      pen.fillRect(0, 0, size, size);
      pen.fillStyle = button.dataset.colour;
      const group = +button.dataset.code,
        r = Math.max(1.6, Math.min(5, 110 / Math.sqrt(codes.length)));
      for (let i = 0; i < codes.length; i++)
        if (codes[i] === group) {
          pen.beginPath();
          pen.arc(
            place[2 * i] / 65535 * size,
            (1 - place[2 * i + 1] / 65535) * size,
            r, 0, 7);
          pen.fill();
        }
    }));
});

document.querySelectorAll(".copy").forEach(button =>
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.of).innerText;
    try {
      await navigator.clipboard.writeText(text);
    }
    catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => button.textContent = "copy", 1500);
  }));
