/** Numbers, times and stages in words. */

const STAGES: Record<string, string> = {
  queued: "Waiting for its turn",
  loading: "Reading the photos",
  choosing: "Choosing the photo to start from",
  waiting: "Waiting for the machine",
  opening: "Getting the model ready",
  forward: "Looking at all photos together",
  poses: "Finding where each photo was taken",
  dense: "Measuring how far away things are",
  completion: "Filling gaps",
  alignment: "Bringing the photos into one space",
  cameras: "Working out the cameras",
  fusion: "Putting the scene together",
  formats: "Writing the files",
  storing: "Saving the scene",
};

/** What a job does now. Stages that are not known here are said as the service names them. */
export function stage(name: string): string {
  return STAGES[name] ?? name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString()} ${number === 1 ? one : many}`;
}

export function bytes(number: number): string {
  const units = ["bytes", "kB", "MB", "GB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(number, 1)) / 3));
  const value = number / 1000 ** power;
  return `${value.toLocaleString(undefined, { maximumFractionDigits: value < 10 && power > 1 ? 1 : 0 })} ${units[power]}`;
}

export function duration(seconds: number): string {
  const whole = Math.round(seconds);
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

export function when(date: string | number): string {
  return new Date(date).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
