/** A quiet line while the service cannot do any job; it goes by itself. */

import type { Access } from "./key";

const PAUSE = { ready: 60_000, waiting: 4_000 };

/** Look now, and from time to time while the page is looked at. */
export async function watchReadiness(access: Access, banner: HTMLElement): Promise<never> {
  while (true) {
    const reasons = document.hidden ? [] : await access.service.reasons();
    const text = reasons.length ? `Not ready for new scenes: ${reasons.join(" ")} This page goes on looking.` : "";
    // Saying the same again would be read out again.
    if (banner.textContent !== text) banner.textContent = text;
    await new Promise((resolve) => setTimeout(resolve, text ? PAUSE.waiting : PAUSE.ready));
  }
}
