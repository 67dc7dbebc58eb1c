/** Every icon: 24 x 24, lines 1.75 wide. */

const SHAPES = {
  gaussians:
    "M12 5.5c4 0 7.5 2.6 7.5 6.5S16 18.5 12 18.5 4.5 15.9 4.5 12 8 5.5 12 5.5Z M12 9.5c1.8 0 3.3 1 3.3 2.5s-1.5 2.5-3.3 2.5-3.3-1-3.3-2.5 1.5-2.5 3.3-2.5Z",
  points: "M6 6h.01M12 5h.01M18 7h.01M5 12h.01M11 11h.01M17 13h.01M7 18h.01M13 17h.01M19 19h.01",
  mesh: "M12 3.5 20 8v8l-8 4.5L4 16V8Z M4 8l8 4.5L20 8 M12 12.5v8 M12 3.5 4 16 M12 3.5 20 16",
  home: "M4.5 11 12 4.5l7.5 6.5 M6.5 9.5v10h11v-10 M10 19.5v-5.5h4v5.5",
  walk: "M13.5 4.5a1.5 1.5 0 1 0 .01 0Z M12.5 9.5 9.5 11 8 14 M12.5 9.5l.8 5 3.2 2.5.5 3.5 M13.3 14.5 10.5 17 8.5 20.5 M12.5 9.5l2.8 2.7 2.7.8",
  frusta: "M3.5 8.5h4l1.5-2.5h6l1.5 2.5h4v10.5h-17Z M12 10.2a3.3 3.3 0 1 0 .01 0Z",
  photos: "M7.5 4.5h12v12h-12Z M4.5 8v11.5H16 M8 14.5l3.2-3.5 2.6 2.7 1.7-1.7 3.8 4",
  measure: "M3.5 15.5 15.5 3.5l5 5-12 12Z M7 12l2 2 M10 9l2.7 2.7 M13 6l2 2",
  settings: "M4 7h9 M17 7h3 M15 5a2 2 0 1 0 .01 0Z M4 17h3 M11 17h9 M9 15a2 2 0 1 0 .01 0Z",
  picture: "M4.5 8V4.5H8 M16 4.5h3.5V8 M19.5 16v3.5H16 M8 19.5H4.5V16 M12 8.7a3.3 3.3 0 1 0 .01 0Z",
  download: "M12 4v11 M7.5 11 12 15.5 16.5 11 M4.5 19.5h15",
  info: "M12 3.8a8.2 8.2 0 1 0 .01 0Z M12 11v5.2 M12 7.8h.01",
  fullscreen: "M9 4.5H4.5V9 M15 4.5h4.5V9 M19.5 15v4.5H15 M9 19.5H4.5V15",
  shrink: "M4.5 9H9V4.5 M19.5 9H15V4.5 M15 19.5V15h4.5 M9 19.5V15H4.5",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "M6 6l12 12 M18 6 6 18",
  play: "M8.5 5.5v13l10.5-6.5Z",
  add: "M12 5v14 M5 12h14",
  archive: "M6 3.5h9l4 4v13H6Z M10 3.5v2h2v2h-2v2h2v2h-2v2 M10 13.5h2v4h-2Z",
  copy: "M9 9h11v11H9Z M15 9V4H4v11h5",
  left: "M14.5 6l-6 6 6 6",
  photo: "M4 5h16v14H4Z M4 16l4.5-4.5 4 4 2.5-2.5 5 5 M15.5 9.5h.01",
  right: "M9.5 6l6 6-6 6",
  share: "M12 15V4 M8 7.5 12 3.5l4 4 M5 12v8h14v-8",
  trash: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13 M10.5 11v5.5 M13.5 11v5.5",
  video: "M4 6h11v12H4Z M15 10.5l5-3v9l-5-3",
  warning: "M12 4.5 21 19.5H3Z M12 10.5v4 M12 17h.01",
};

export type Icon = keyof typeof SHAPES;

export function icon(name: Icon): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}
