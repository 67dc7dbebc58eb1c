/** Times, in words. */

export { bytes, count, duration, percent, stage, when } from "../element/words";

/** Of what is no older than a few days. */
export function lately(time: string | number): string {
  const form: Intl.DateTimeFormatOptions = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  return new Date(time).toLocaleString("en", form);
}

export function elapsed(seconds: number): string {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** As rough as an estimate is. */
export function roughly(seconds: number): string {
  if (seconds < 10) return "a few seconds left";
  if (seconds < 55) return `about ${10 * Math.round(seconds / 10)} s left`;
  return `about ${Math.max(1, Math.round(seconds / 60))} min left`;
}
