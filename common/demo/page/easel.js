// The easel: a picture of 128 x 128 pixels and what is brushed over it. A file is read, cut and shrunk here, in the
// browser, so that the page uploads no file at all: the server gets 128 x 128 pixels and nothing else.
window.demoEasel = (() => {
  const SIZE = 128, LARGEST = 20e6, LONGEST_SIDE = 12000;
  const parts = { filled: false };

  function message(name) {
    parts.root.querySelectorAll("[data-message]").forEach((each) => {
      each.style.display = each.dataset.message === name ? "" : "none";
    });
  }

  function attach(root) {
    parts.root = root;
    parts.picture = root.querySelector("canvas.picture");
    parts.brush = root.querySelector("canvas.brush");
    parts.filled = false;
    message("");
    root.querySelector("input[type=file]").addEventListener("change", (event) => {
      const file = event.target.files[0];
      if (file) open(file);
      event.target.value = "";
    });
    root.querySelector(".clear").addEventListener("click", clear);
    let last = null;
    const place = (event) => {
      const box = parts.brush.getBoundingClientRect();
      return [(event.clientX - box.left) * SIZE / box.width, (event.clientY - box.top) * SIZE / box.height];
    };
    const stroke = (event) => {
      const pen = parts.brush.getContext("2d"), here = place(event);
      pen.strokeStyle = "rgb(225, 60, 60)";
      pen.lineCap = "round";
      pen.lineWidth = Number(root.querySelector("input[type=range]").value);
      pen.beginPath();
      pen.moveTo(...(last || here));
      pen.lineTo(here[0] + 0.01, here[1]);
      pen.stroke();
      last = here;
    };
    parts.brush.addEventListener("pointerdown", (event) => {
      if (!parts.filled) return;
      parts.brush.setPointerCapture(event.pointerId);
      stroke(event);
    });
    parts.brush.addEventListener("pointermove", (event) => last && stroke(event));
    for (const end of ["pointerup", "pointercancel"]) parts.brush.addEventListener(end, () => { last = null; });
  }

  function clear() {
    parts.brush.getContext("2d").clearRect(0, 0, SIZE, SIZE);
  }

  async function open(blob) {
    message("");
    if (blob.size > LARGEST) return message("large");
    let image;
    try {
      image = await createImageBitmap(blob);
    } catch {
      return message("unreadable");
    }
    if (Math.max(image.width, image.height) > LONGEST_SIDE) return message("large");
    show(image);
  }

  function show(image) {
    // halved until it is at most twice as large, so that every pixel of the file counts
    const side = Math.min(image.width, image.height);
    let source = image, box = [(image.width - side) / 2, (image.height - side) / 2, side];
    while (box[2] > 2 * SIZE) {
      const half = document.createElement("canvas");
      half.width = half.height = Math.round(box[2] / 2);
      half.getContext("2d").drawImage(source, box[0], box[1], box[2], box[2], 0, 0, half.width, half.width);
      source = half;
      box = [0, 0, half.width];
    }
    const pen = parts.picture.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, SIZE, SIZE);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(source, box[0], box[1], box[2], box[2], 0, 0, SIZE, SIZE);
    parts.filled = true;
    parts.root.querySelector(".empty").style.display = "none";
    clear();
  }

  async function load(url) {
    const image = new Image();
    image.src = url;
    await image.decode();
    message("");
    show(image);
  }

  return {
    attach,
    load,
    picture: () => (parts.filled ? parts.picture.toDataURL("image/png") : ""),
    brush: () => (parts.filled ? parts.brush.toDataURL("image/png") : ""),
  };
})();
