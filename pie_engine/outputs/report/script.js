// The viewer of report.html. Everything it shows is in the page: frames and region as images, the rest as JSON.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const images = [...$("frames").querySelectorAll("img")];
  const thumbs = [...$("frames").querySelectorAll("button")];
  const { width, height, rounds, colours } = data;
  const last = images.length - 1;
  // Pictures of small models are enlarged, so that the label below them is drawn in letters of a good size.
  const zoom = Math.max(1, Math.ceil(768 / width));
  const strip = Math.round(0.06 * width * zoom);
  const blinkMs = 700; // below three changes a second
  const frameMs = 400, lastMs = 1500;

  const state = { index: last, view: "side", overlay: false, blinkInput: false };
  let limits = { ...data.limits };
  let playing = 0, blinking = 0;

  // ---- pixels ----

  function pixelsOf(image) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  }

  const greys = new Map();
  function greyOf(index) { // ITU-R BT.601, rounded as differences.png has it
    if (!greys.has(index)) {
      const rgba = pixelsOf(images[index]), grey = new Uint8Array(width * height);
      for (let i = 0, p = 0; i < grey.length; i++, p += 4) {
        grey[i] = (rgba[p] * 19595 + rgba[p + 1] * 38470 + rgba[p + 2] * 7471 + 32768) >> 16;
      }
      greys.set(index, grey);
    }
    return greys.get(index);
  }

  function readRegion() { // 1 = may change
    if (!$("roi")) return null;
    const rgba = pixelsOf($("roi"));
    return Uint8Array.from({ length: width * height }, (_, i) => (rgba[4 * i] > 127 ? 1 : 0));
  }

  // ---- the region of interest: a tint, and an outline along the edges of its pixels ----

  function makeOverlay(region) {
    const tint = document.createElement("canvas"), outline = new Path2D();
    [tint.width, tint.height] = [width, height];
    const context = tint.getContext("2d"), picture = context.createImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const i = y * width + x;
        if (!region[i]) continue;
        picture.data.set([255, 176, 0, 46], 4 * i);
        const line = (x0, y0, x1, y1) => {
          outline.moveTo(x0 * zoom, y0 * zoom);
          outline.lineTo(x1 * zoom, y1 * zoom);
        };
        if (x > 0 && !region[i - 1]) line(x, y, x, y + 1);
        if (x < width - 1 && !region[i + 1]) line(x + 1, y, x + 1, y + 1);
        if (y > 0 && !region[i - width]) line(x, y, x + 1, y);
        if (y < height - 1 && !region[i + width]) line(x, y + 1, x + 1, y + 1);
      }
    }
    context.putImageData(picture, 0, 0);
    return { tint, outline };
  }

  function drawOverlay(context, tinted) {
    if (tinted) {
      context.imageSmoothingEnabled = false;
      context.drawImage(overlay.tint, 0, 0, width * zoom, height * zoom);
    }
    for (const [colour, size] of [["#000", 4], ["#ffb000", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = size;
      context.stroke(overlay.outline);
    }
  }

  // ---- panels ----

  const nameOf = (index) => (index === 0 ? "input" : `round ${rounds[index]}`);

  // The label lies below the picture, in the same pixels: whoever copies the one has the other.
  function paint(id, source, label, simulated, map) {
    const canvas = $(`${id}-canvas`), context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [width * zoom, height * zoom + strip];
    context.imageSmoothingEnabled = !map;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, width * zoom, height * zoom);
    if (state.overlay && overlay) drawOverlay(context, !map);
    context.fillStyle = "#000";
    context.fillRect(0, height * zoom, canvas.width, strip);
    context.fillStyle = simulated ? "#ffb000" : "#e6e8eb";
    context.font = `600 ${Math.round(0.62 * strip)}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const text = simulated ? `SIMULATED, ${label}, research use only` : `INPUT, not simulated`;
    context.fillText(text, 0.3 * strip, height * zoom + strip / 2, canvas.width - 0.6 * strip);
    canvas.setAttribute("aria-label", text);
  }

  function paintFrame(id, index) {
    paint(id, images[index], nameOf(index), index > 0, false);
  }

  function colourTable(limit) { // by difference + 255; light grey in the middle, the end's colour beyond the limit
    const table = new Uint8Array(511 * 3);
    for (let d = -255; d <= 255; d++) {
      const place = ((Math.max(-1, Math.min(1, d / limit)) + 1) / 2) * (colours.length - 1);
      const low = Math.min(Math.floor(place), colours.length - 2), part = place - low;
      for (let c = 0; c < 3; c++) {
        table[(d + 255) * 3 + c] = Math.round(colours[low][c] * (1 - part) + colours[low + 1][c] * part);
      }
    }
    return table;
  }

  function inMark(x, y) {
    const box = data.markBox;
    return box !== null && x >= box[0] && y >= box[1] && x < box[2] && y < box[3];
  }

  function paintDifference() {
    const against = $("against").value, limit = limits[against];
    const reference = against === "input" ? 0 : Math.max(0, state.index - 1);
    const now = greyOf(state.index), before = greyOf(reference), table = colourTable(limit);
    const map = document.createElement("canvas");
    [map.width, map.height] = [width, height];
    const context = map.getContext("2d"), picture = context.createImageData(width, height);
    const sums = [0, 0], counts = [0, 0];
    let low = 0, high = 0, changed = 0, beyond = 0;
    for (let i = 0; i < now.length; i++) {
      const masked = inMark(i % width, Math.floor(i / width));
      const d = masked ? 0 : now[i] - before[i], inside = region ? region[i] : 1;
      low = Math.min(low, d);
      high = Math.max(high, d);
      changed += d !== 0;
      beyond += Math.abs(d) > limit;
      if (!masked) [sums[inside], counts[inside]] = [sums[inside] + Math.abs(d), counts[inside] + 1];
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = table[(d + 255) * 3 + c];
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    paint("right", map, `${nameOf(state.index)} minus ${nameOf(reference)}`, true, true);
    const mean = (part) => (counts[part] ? (sums[part] / counts[part]).toFixed(2) : "-");
    const parts = [`Found ${low} to +${high} grey levels.`];
    parts.push(region ? `Mean change inside the region ${mean(1)}, outside ${mean(0)}.` : `Mean change ${mean(1)}.`);
    if (beyond) parts.push(`${((100 * beyond) / changed).toFixed(2)} % of the changed pixels lie beyond the bar.`);
    if (data.markBox) parts.push("The visible mark is left out.");
    $("scale-note").textContent = parts.join(" ");
    $("scale-low").textContent = `darker \u2212${limit}`;
    $("scale-high").textContent = `+${limit} brighter`;
    $("limit").value = limit;
    $("limit-value").textContent = `\u00b1${limit} grey levels`;
  }

  function render() {
    const { index, view } = state;
    $("left").hidden = view === "blink";
    $("scale").hidden = $("only-difference").hidden = view !== "difference";
    $("only-blink").hidden = view !== "blink";
    $("panels").dataset.view = view;
    if (view === "side") paintFrame("left", 0);
    if (view === "difference") paintFrame("left", index);
    if (view === "difference") paintDifference();
    else paintFrame("right", view === "blink" && state.blinkInput ? 0 : index);
    const text = index === 0 ? "Input, not simulated" : `Round ${rounds[index]} of ${rounds[last]}, simulated`;
    $("frame").value = index;
    $("frame").setAttribute("aria-valuetext", text);
    if ($("status").textContent !== text) $("status").textContent = text;
    thumbs.forEach((thumb, i) => thumb.setAttribute("aria-current", String(i === index)));
    for (const cursor of document.querySelectorAll(".cursor")) {
      const x = Number(cursor.dataset.zero) + rounds[index] * Number(cursor.dataset.step);
      cursor.setAttribute("transform", `translate(${x} 0)`);
    }
  }

  // ---- what can be done ----

  function show(index) {
    state.index = Math.max(0, Math.min(last, index));
    render();
  }

  function play(on) {
    clearTimeout(playing);
    playing = 0;
    if (on) {
      if (state.index === last) show(0);
      const next = () => {
        show(state.index === last ? 0 : state.index + 1);
        playing = setTimeout(next, state.index === last ? lastMs : frameMs);
      };
      playing = setTimeout(next, frameMs);
    }
    $("play").textContent = on ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(on));
  }

  function step(by) {
    play(false);
    show(state.index + by);
  }

  function blink() { // starts or stops the timer, as view and check box have it
    clearInterval(blinking);
    if (state.view === "blink" && $("automatic").checked) blinking = setInterval(() => swap(), blinkMs);
  }

  function swap() {
    state.blinkInput = !state.blinkInput;
    render();
  }

  function choose(view) {
    state.view = view;
    state.blinkInput = false;
    document.querySelector(`input[name=view][value=${view}]`).checked = true;
    blink();
    render();
  }

  function toggleOverlay() {
    if (!overlay) return;
    state.overlay = $("overlay").checked = !state.overlay;
    render();
  }

  function swapByHand() {
    $("automatic").checked = false;
    blink();
    if (state.view === "blink") swap();
  }

  const letters = {
    s: () => choose("side"), b: () => choose("blink"), d: () => choose("difference"), o: toggleOverlay, x: swapByHand,
  };
  const moves = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-last), End: () => step(last),
    " ": () => play(!playing),
  };

  function viewerInSight() {
    const box = $("viewer").getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const own = event.key === " " ? "button, summary, input:not([type=range])" : "input:not([type=checkbox])";
    const action = event.key in moves
      ? !event.target.matches(own) && viewerInSight() && moves[event.key]
      : $("letters").checked && letters[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  }

  function connect() {
    document.addEventListener("keydown", onKey);
    $("frame").addEventListener("input", () => { play(false); show(Number($("frame").value)); });
    $("back").addEventListener("click", () => step(-1));
    $("forward").addEventListener("click", () => step(1));
    $("play").addEventListener("click", () => play(!playing));
    $("views").addEventListener("change", (event) => choose(event.target.value));
    addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
    $("overlay").addEventListener("change", () => { state.overlay = $("overlay").checked; render(); });
    $("automatic").addEventListener("change", blink);
    $("swap").addEventListener("click", swapByHand);
    $("against").addEventListener("change", render);
    $("limit").addEventListener("input", () => { limits[$("against").value] = Number($("limit").value); render(); });
    $("reset").addEventListener("click", () => { limits = { ...data.limits }; render(); });
    thumbs.forEach((thumb, i) => thumb.addEventListener("click", () => {
      play(false);
      show(i);
      $("viewer").scrollIntoView({ block: "nearest" });
    }));
  }

  let region = null, overlay = null;
  const all = $("roi") ? [...images, $("roi")] : images;
  Promise.all(all.map((image) => image.decode())).then(() => {
    region = readRegion();
    overlay = region && makeOverlay(region);
    $("automatic").checked = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("viewer").hidden = false;
    connect();
    render();
    document.documentElement.dataset.ready = "true";
  }, () => {
    $("broken").hidden = false; // a file that was cut off while it was copied
  });
})();
