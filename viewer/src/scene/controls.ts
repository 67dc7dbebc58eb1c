/** Ways to move: around a point or as one walks, by mouse, touch and keys. The horizon stays level. */

import { Euler, MathUtils, type PerspectiveCamera, Quaternion, Vector2, Vector3 } from "three";

import { looking, type Pose } from "./world";

export type Walking = "orbit" | "walk";

const UP = new Vector3(0, 1, 0);
const STEEPEST = MathUtils.degToRad(88);
/** Radians that a drag over the canvas' height turns around the pivot. */
const TURN = Math.PI;
/** And an arrow key in a second. */
const SWING = 1.2;
/** Share of the distance that a wheel's notch takes. */
const NOTCH = 0.12;
/** Seconds in which a movement dies down, and in which a flight is made. */
const COAST = 0.09;
/** Heights of the canvas a second at which one coasts at most. */
const COAST_MOST = 1.5;
const FLIGHT = 0.8;
/** Walking speed a second, and nearest approach, in scales of the scene; and how much faster with shift. */
const PACE = 0.5;
const NEAREST = 0.03;
const HURRY = 3;
/** Seconds that a key is at work at least, however short it is struck. */
const LEAST_HOLD = 0.08;
/** A press that moves less, in pixels, and lasts shorter, in milliseconds, is a tap; two so near are one double tap. */
const TAP = { distance: 6, time: 500, double: 350 };

const KEYS: Record<string, [keyof Steps, number]> = {
  ArrowLeft: ["turn", 1], ArrowRight: ["turn", -1], ArrowUp: ["tilt", 1], ArrowDown: ["tilt", -1],
  KeyA: ["aside", -1], KeyD: ["aside", 1], KeyW: ["ahead", 1], KeyS: ["ahead", -1],
  KeyQ: ["rise", -1], KeyE: ["rise", 1], PageDown: ["rise", -1], PageUp: ["rise", 1],
  Equal: ["zoom", 1], NumpadAdd: ["zoom", 1], Minus: ["zoom", -1], NumpadSubtract: ["zoom", -1],
};

interface Steps {
  turn: number;
  /** Ahead, for who walks. */
  tilt: number;
  ahead: number;
  aside: number;
  rise: number;
  zoom: number;
}

interface Press {
  at: Vector2;
  began: Vector2;
  time: number;
  moved: number;
  pans: boolean;
  still: boolean;
}

export interface Listener {
  /** Something has to be drawn. */
  changed(): void;
  /** The user has begun to move. */
  moved(): void;
  /** Positions are in CSS pixels from the canvas' upper left corner. */
  tapped(at: Vector2): void;
  doubleTapped(at: Vector2): void;
  /** Null: the pointer has left, or is pressed. */
  hovered(at: Vector2 | null): void;
  /** What is seen there, if anything is. */
  surface(at: Vector2): Vector3 | null;
}

export class Controls {
  walking: Walking = "orbit";
  /** What is moved around, and what sizes and speeds are measured by. */
  readonly pivot = new Vector3();
  scale = 1;

  private yaw = 0;
  private pitch = 0;
  private roll = 0;
  private level = true;
  private stirred = false;
  private lastMove = 0;
  /** Radians and pixels a second. */
  private readonly coasting = { turn: new Vector2(), pan: new Vector2() };
  private readonly speed: Steps = { turn: 0, tilt: 0, ahead: 0, aside: 0, rise: 0, zoom: 0 };
  private readonly presses = new Map<number, Press>();
  /** Keys at work, with the seconds that they have been, and which of them are let go already. */
  private readonly keys = new Map<string, number>();
  private readonly released = new Set<string>();
  private hurried = false;
  private flight: { from: Pose; to: Pose; pivot: [Vector3, Vector3]; seconds: number } | null = null;
  private lastTap = { at: new Vector2(-1, -1), time: 0 };
  private wheel: { anchor: Vector3; time: number; at: Vector2 } | null = null;
  private readonly listening = new AbortController();

  constructor(
    private readonly camera: PerspectiveCamera,
    private readonly canvas: HTMLCanvasElement,
    private readonly listener: Listener,
  ) {
    const { signal } = this.listening;
    type Events = HTMLElementEventMap;
    const on = <K extends keyof Events>(type: K, listen: (event: Events[K]) => void) =>
      canvas.addEventListener(type, listen, { signal, passive: false });
    on("pointerdown", (event) => this.press(event));
    on("pointermove", (event) => this.drag(event));
    on("pointerup", (event) => this.release(event, true));
    on("pointercancel", (event) => this.release(event, false));
    on("pointerleave", () => listener.hovered(null));
    on("wheel", (event) => this.roller(event));
    on("keydown", (event) => this.key(event, true));
    on("keyup", (event) => this.key(event, false));
    on("blur", () => this.keys.clear());
    on("contextmenu", (event) => event.preventDefault());
    canvas.style.touchAction = "none";
  }

  /** Be there at once. */
  place(pose: Pose, pivot: Vector3): void {
    this.flight = null;
    this.halt();
    this.camera.position.copy(pose.position);
    this.adopt(pose.quaternion, pose.fov);
    this.pivot.copy(pivot);
    this.listener.changed();
  }

  /** Fly there, or be there at once where motion is not wanted. */
  fly(to: Pose, pivot: Vector3): void {
    if (this.calm) return this.place(to, pivot);
    this.halt();
    const { position, quaternion, fov } = this.camera;
    const from = { position: position.clone(), quaternion: quaternion.clone(), fov };
    this.flight = { from, to, pivot: [this.pivot.clone(), pivot.clone()], seconds: 0 };
    this.listener.changed();
  }

  /** Turn to a place, and move around it from now on. */
  face(place: Vector3): void {
    const { position, fov } = this.camera;
    this.fly({ position: position.clone(), quaternion: looking(position, place), fov }, place);
  }

  /** Move on by so many seconds; whether there is more to come. */
  update(seconds: number): boolean {
    if (this.flight) return this.flyOn(seconds);
    const { stirred } = this;
    this.stirred = false;
    return [this.coast(seconds), this.step(seconds), this.straighten(seconds), stirred].some(Boolean);
  }

  dispose(): void {
    this.listening.abort();
  }

  private get calm(): boolean {
    return matchMedia("(prefers-reduced-motion: reduce)").matches;
  }

  private get height(): number {
    return this.canvas.clientHeight || 1;
  }

  /** Width in the scene of a pixel at the pivot's distance. */
  private get grain(): number {
    const distance = Math.max(this.camera.position.distanceTo(this.pivot), NEAREST * this.scale);
    return (2 * distance * Math.tan(MathUtils.degToRad(this.camera.fov) / 2)) / this.height;
  }

  private press(event: PointerEvent): void {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const at = new Vector2(event.offsetX, event.offsetY);
    const pans = event.button !== 0 || event.shiftKey || event.ctrlKey || event.metaKey;
    const { timeStamp: time } = event;
    this.presses.set(event.pointerId, { at, began: at.clone(), time, moved: time, pans, still: true });
    if (this.presses.size > 1) for (const press of this.presses.values()) press.still = false;
    this.halt();
    this.listener.hovered(null);
  }

  private drag(event: PointerEvent): void {
    const at = new Vector2(event.offsetX, event.offsetY);
    const press = this.presses.get(event.pointerId);
    if (!press) {
      if (event.pointerType !== "touch") this.listener.hovered(at);
      return;
    }
    if (press.still && at.distanceTo(press.began) < TAP.distance) return;
    if (press.still) press.at.copy(at);
    press.still = false;
    const by = at.clone().sub(press.at);
    const other = [...this.presses].find(([id]) => id !== event.pointerId)?.[1];
    const spread = other ? [press.at.distanceTo(other.at), at.distanceTo(other.at)] : [1, 1];
    press.at.copy(at);
    this.begin();
    if (other) this.pinch(by.multiplyScalar(0.5), spread[1]! / (spread[0]! || 1), other.at.clone().lerp(at, 0.5));
    else this.follow(by, press.pans, Math.max((event.timeStamp - press.moved) / 1000, 1 / 120));
    press.moved = event.timeStamp;
  }

  private release(event: PointerEvent, ended: boolean): void {
    const press = this.presses.get(event.pointerId);
    this.presses.delete(event.pointerId);
    this.listener.changed();
    if (!press || !ended) return;
    // A finger or hand that rests before it lifts has stopped the movement.
    if (this.calm || event.timeStamp - this.lastMove > 60) this.halt();
    if (!press.still || event.timeStamp - press.time > TAP.time || event.button !== 0) return;
    const twice =
      event.timeStamp - this.lastTap.time < TAP.double && press.at.distanceTo(this.lastTap.at) < 4 * TAP.distance;
    this.lastTap = { at: press.at, time: twice ? 0 : event.timeStamp };
    if (twice) this.listener.doubleTapped(press.at);
    else this.listener.tapped(press.at);
  }

  /** The user moves, from here on. */
  private begin(): void {
    this.flight = null;
    this.level = false;
    this.stirred = true;
    this.lastMove = performance.now();
    this.listener.moved();
    this.listener.changed();
  }

  /** Turn about the pivot, wherever it is in the picture: it stays there. */
  private orbit(yaw: number, pitch: number): void {
    const to = MathUtils.clamp(this.pitch + pitch, -STEEPEST, STEEPEST);
    const offset = this.camera.position.clone().sub(this.pivot).applyAxisAngle(UP, yaw);
    this.yaw += yaw;
    offset.applyAxisAngle(new Vector3(1, 0, 0).applyAxisAngle(UP, this.yaw), to - this.pitch);
    this.pitch = to;
    this.camera.position.copy(this.pivot).add(offset);
    this.turnCamera();
  }

  /** Do what one pointer does that moves, and remember how fast, to coast on when it is let go. */
  private follow(by: Vector2, pans: boolean, seconds: number): void {
    if (!pans && this.walking === "walk") return this.look(by);
    const turn = by.clone().multiplyScalar(-TURN / this.height);
    if (pans) this.pan(by);
    else this.orbit(turn.x, turn.y);
    const { pan, turn: turning } = this.coasting;
    pan.lerp(pans ? by.divideScalar(seconds).clampLength(0, COAST_MOST * this.height) : new Vector2(), 0.4);
    turning.lerp(pans ? new Vector2() : turn.divideScalar(seconds).clampLength(0, COAST_MOST * TURN), 0.4);
  }

  /** Turn the head: what is under the pointer goes with it. */
  private look(by: Vector2): void {
    const perPixel = MathUtils.degToRad(this.camera.fov) / this.height;
    this.yaw += by.x * perPixel;
    this.pitch = MathUtils.clamp(this.pitch + by.y * perPixel, -STEEPEST, STEEPEST);
    this.turnCamera();
  }

  private pan(by: Vector2): void {
    const move = new Vector3(-by.x, by.y, 0).multiplyScalar(this.grain).applyQuaternion(this.camera.quaternion);
    this.camera.position.add(move);
    this.pivot.add(move);
  }

  private pinch(by: Vector2, factor: number, middle: Vector2): void {
    if (this.walking === "walk") {
      const perPixel = (2 * PACE * this.scale) / this.height;
      this.go(by.x * -perPixel, 0, by.y * 2 * perPixel + Math.log(factor) * PACE * this.scale);
    } else {
      this.pan(by);
      this.approach(this.anchorAt(middle), 1 / factor);
    }
  }

  private roller(event: WheelEvent): void {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? this.height : 1);
    // Touchpads that pinch send small steps with ctrl.
    const notches = MathUtils.clamp((pixels / 100) * (event.ctrlKey ? 8 : 1), -3, 3);
    this.begin();
    if (this.walking === "walk") this.go(0, 0, -notches * NOTCH * this.scale);
    else this.approach(this.anchorAt(new Vector2(event.offsetX, event.offsetY)), (1 + NOTCH) ** notches);
  }

  /** What is zoomed to: the surface under the pointer, looked for once a gesture. */
  private anchorAt(at: Vector2): Vector3 {
    const now = performance.now();
    if (!this.wheel || now - this.wheel.time > 400 || this.wheel.at.distanceTo(at) > 40) {
      const found = this.listener.surface(at);
      // Around what was come near to is what one wants to turn next.
      if (found) this.pivot.copy(found);
      this.wheel = { anchor: found ?? this.pivot.clone(), time: now, at: at.clone() };
    }
    this.wheel.time = now;
    return this.wheel.anchor;
  }

  /** Take the distance to a place times a factor; what is very near is passed through. */
  private approach(anchor: Vector3, factor: number): void {
    const away = this.camera.position.clone().sub(anchor);
    const distance = away.length() || 1e-6;
    const least = NEAREST * this.scale;
    if (factor < 1 && distance < 2 * least) this.go(0, 0, (1 - factor) * 4 * least);
    else this.camera.position.copy(anchor).addScaledVector(away, factor);
    if (this.camera.position.distanceTo(this.pivot) > 50 * this.scale) {
      this.camera.position.copy(anchor).add(away);
    }
  }

  private go(aside: number, rise: number, ahead: number): void {
    const flat = new Vector3(aside, 0, 0).applyAxisAngle(UP, this.yaw);
    const move = new Vector3(0, 0, -ahead).applyQuaternion(this.camera.quaternion).add(flat);
    move.y += rise;
    this.camera.position.add(move);
    this.pivot.add(move);
  }

  private key(event: KeyboardEvent, down: boolean): void {
    this.hurried = event.shiftKey;
    if (!KEYS[event.code] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!down) {
      this.released.add(event.code);
      return;
    }
    this.released.delete(event.code);
    if (!event.repeat) this.keys.set(event.code, 0);
    this.begin();
  }

  /** What the pressed keys do, beginning and ending softly. */
  private step(seconds: number): boolean {
    const wanted: Steps = { turn: 0, tilt: 0, ahead: 0, aside: 0, rise: 0, zoom: 0 };
    let moves = this.keys.size > 0;
    for (const [code, held] of this.keys) {
      const [what, sign] = KEYS[code]!;
      wanted[what] += sign;
      this.keys.set(code, held + seconds);
      if (this.released.has(code) && held + seconds > LEAST_HOLD) this.keys.delete(code);
    }
    const ease = this.calm ? 1 : 1 - Math.exp(-seconds / COAST);
    for (const what of Object.keys(wanted) as (keyof Steps)[]) {
      this.speed[what] += (wanted[what] - this.speed[what]) * ease;
      if (Math.abs(this.speed[what]) < 0.01) this.speed[what] = 0;
      moves ||= this.speed[what] !== 0;
    }
    if (!moves) return false;
    const { turn, tilt, ahead, aside, rise, zoom } = this.speed;
    const stride = PACE * this.scale * seconds * (this.hurried ? HURRY : 1);
    this.go(aside * stride, rise * stride, ahead * stride);
    if (this.walking === "walk") {
      this.yaw += SWING * turn * seconds;
      this.turnCamera();
      this.go(0, 0, (tilt + zoom) * stride);
    } else {
      if (this.hurried) this.pan(new Vector2(turn, tilt).multiplyScalar(this.height * seconds));
      else this.orbit(-SWING * turn * seconds, -SWING * tilt * seconds);
      this.approach(this.pivot, (1 + NOTCH) ** (-8 * zoom * seconds));
    }
    return true;
  }

  private coast(seconds: number): boolean {
    const { turn, pan } = this.coasting;
    if (this.presses.size || (turn.length() < 0.01 && pan.length() < 3)) return false;
    this.orbit(turn.x * seconds, turn.y * seconds);
    this.pan(pan.clone().multiplyScalar(seconds));
    const left = Math.exp(-seconds / COAST);
    turn.multiplyScalar(left);
    pan.multiplyScalar(left);
    return true;
  }

  /** Photos are held a little askew; who moves on from one stands upright again. */
  private straighten(seconds: number): boolean {
    if (this.level || !this.roll) return false;
    this.roll *= Math.exp(-seconds / COAST);
    if (Math.abs(this.roll) < 1e-4) this.roll = 0;
    this.turnCamera();
    return true;
  }

  private flyOn(seconds: number): boolean {
    const flight = this.flight!;
    flight.seconds = Math.min(flight.seconds + seconds, FLIGHT);
    const t = MathUtils.smootherstep(flight.seconds / FLIGHT, 0, 1);
    const { from, to, pivot } = flight;
    this.camera.position.lerpVectors(from.position, to.position, t);
    const quaternion = new Quaternion().slerpQuaternions(from.quaternion, to.quaternion, t);
    this.adopt(quaternion, MathUtils.lerp(from.fov, to.fov, t));
    this.pivot.lerpVectors(pivot[0], pivot[1], t);
    if (flight.seconds >= FLIGHT) this.flight = null;
    return true;
  }

  private adopt(quaternion: Quaternion, fov: number): void {
    const turned = new Euler().setFromQuaternion(quaternion, "YXZ");
    [this.yaw, this.pitch, this.roll] = [turned.y, turned.x, turned.z];
    this.level = true;
    this.camera.fov = fov;
    this.camera.updateProjectionMatrix();
    this.turnCamera();
  }

  private turnCamera(): void {
    this.camera.quaternion.setFromEuler(new Euler(this.pitch, this.yaw, this.roll, "YXZ"));
    this.camera.updateMatrixWorld();
  }

  private halt(): void {
    this.coasting.turn.set(0, 0);
    this.coasting.pan.set(0, 0);
  }
}
