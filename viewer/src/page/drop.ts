/** Every way in which files come to the page: chosen, taken with the camera, dropped anywhere, pasted. */

import { part } from "./dom";
import { dropped } from "./files";

/** Hand files to `take`. While `wanted` says no, dropped ones are passed over. */
export function onFiles(take: (files: readonly File[]) => void, wanted: () => boolean): void {
  for (const id of ["choose", "take"]) {
    const input = part("input", id);
    input.onchange = () => {
      const files = [...(input.files ?? [])];
      // Else the same photo, taken out again, could not be chosen again.
      input.value = "";
      take(files);
    };
  }

  let inside = 0;
  const carriesFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  const count = (now: number) => {
    inside = Math.max(0, now);
    document.body.classList.toggle("dropping", inside > 0);
  };
  // The browser tells of entering each element, and of leaving it.
  addEventListener("dragenter", (event) => carriesFiles(event) && wanted() && count(inside + 1));
  addEventListener("dragleave", (event) => carriesFiles(event) && count(inside - 1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    count(0);
    if (!carriesFiles(event)) return;
    // Even where nothing is taken now: the browser would leave the page to show the file.
    event.preventDefault();
    if (wanted()) void dropped(event.dataTransfer!).then(take);
  });
  addEventListener("paste", (event) => wanted() && take([...(event.clipboardData?.files ?? [])]));
}
