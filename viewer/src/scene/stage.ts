/** A canvas that is drawn when something has changed, and never else: at full quality at rest, faster while moving. */

import { Color, PerspectiveCamera, Scene, Vector2, WebGLRenderer } from "three";

/** WebGL 2 cannot be had here. */
export class NoWebGL extends Error {
  override readonly name = "NoWebGL";
}

const MOST_PIXELS_PER_PIXEL = 2;
/** Milliseconds between frames: above the one, less is drawn while the camera moves; below the other, more again. */
const SLOW = 38;
const FAST = 21;
const LEAST_SHARE = 0.04;
/** What is drawn while moving at first, until that has been measured. */
const FIRST_SHARE = { large: 1, small: 0.5, software: 0.1 };
/** Milliseconds that a frame counts for at most: a flight is not to end in one leap. */
const LONGEST = 200;
/** Milliseconds after the last movement until everything is drawn. */
const REST = 160;

export class Stage {
  readonly renderer: WebGLRenderer;
  readonly scene = new Scene();
  readonly camera = new PerspectiveCamera(50, 1, 0.01, 100);
  /** Moves what moves, and tells whether it goes on; `seconds` since the last frame. */
  onFrame: (seconds: number) => boolean = () => false;
  /** Told the share of the scene to draw from now on. */
  onShare: (share: number) => void = () => undefined;
  onResize: () => void = () => undefined;

  private readonly ground = new Color("white");
  private frame = 0;
  private last = 0;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private moving = false;
  private interval = 0;
  private share: number;
  private coarse = false;
  private readonly observer: ResizeObserver;

  /** Throws NoWebGL. */
  constructor(readonly canvas: HTMLCanvasElement) {
    try {
      this.renderer = new WebGLRenderer({ canvas, antialias: false, powerPreference: "high-performance" });
    } catch (cause) {
      throw new NoWebGL("This browser has no WebGL 2.", { cause });
    }
    this.share = FIRST_SHARE[this.graphics];
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(canvas);
    this.fit();
  }

  /** Whether the graphics are computed by the processor, or by a small chip beside it. */
  get graphics(): "software" | "small" | "large" {
    const gl = this.renderer.getContext();
    const extension = gl.getExtension("WEBGL_debug_renderer_info");
    const name = String(gl.getParameter(extension ? extension.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
    if (/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name)) return "software";
    return /intel|mali|adreno|powervr|videocore|vega \d\b|radeon\(?tm\)? graphics/i.test(name) ? "small" : "large";
  }

  get aspect(): number {
    return this.camera.aspect;
  }

  /** Tangent of the angle that a CSS pixel takes, at the middle of the canvas. */
  get pixel(): number {
    return (2 * Math.tan((this.camera.fov * Math.PI) / 360)) / (this.canvas.clientHeight || 1);
  }

  set background(colour: string) {
    // Whatever CSS calls a colour; three knows only some of it.
    const context = new OffscreenCanvas(1, 1).getContext("2d")!;
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
    this.ground.set(`rgb(${red}, ${green}, ${blue})`);
    this.renew();
  }

  /** Tell the graphics anew what they forget when they are lost. */
  renew(): void {
    this.renderer.setClearColor(this.ground);
    this.request();
  }

  /** Draw soon. */
  request(): void {
    this.frame ||= requestAnimationFrame((now) => this.draw(now));
  }

  /** Resolves after the next frame. */
  async drawn(): Promise<void> {
    this.request();
    await new Promise(requestAnimationFrame);
  }

  /** Everything, at once; what the canvas then holds can be read in the same breath. */
  render(): void {
    this.quality(1, false);
    this.renderer.render(this.scene, this.camera);
  }

  dispose(): void {
    cancelAnimationFrame(this.frame);
    this.frame = -1;
    clearTimeout(this.rest);
    this.observer.disconnect();
    this.renderer.dispose();
    // Else the browser holds the graphics until it happens to collect them, and counts it among the few it allows.
    if (!this.renderer.getContext().isContextLost()) this.renderer.forceContextLoss();
  }

  private draw(now: number): void {
    this.frame = 0;
    const elapsed = now - this.last;
    this.last = now;
    // After a pause, the time since the last frame says nothing.
    const moves = this.onFrame(this.moving ? Math.min(elapsed, LONGEST) / 1000 : 1 / 60);
    if (moves) {
      clearTimeout(this.rest);
      this.rest = undefined;
      if (this.moving) this.adapt(elapsed);
      this.moving = true;
      this.quality(this.share, this.coarse);
      this.request();
    } else if (this.moving) {
      this.rest ??= setTimeout(() => this.settle(), REST);
    }
    this.renderer.render(this.scene, this.camera);
  }

  private settle(): void {
    this.rest = undefined;
    this.moving = false;
    this.interval = 0;
    this.quality(1, false);
    this.request();
  }

  private adapt(elapsed: number): void {
    this.interval = this.interval ? 0.6 * this.interval + 0.4 * elapsed : elapsed;
    if (this.interval > SLOW) {
      if (!this.coarse && this.renderer.getPixelRatio() > 1) this.coarse = true;
      else this.share = Math.max(this.share * Math.max(0.3, SLOW / this.interval), LEAST_SHARE);
    } else if (this.interval < FAST) {
      this.share = Math.min(1.1 * this.share, 1);
    }
  }

  private quality(share: number, coarse: boolean): void {
    this.onShare(share);
    const ratio = coarse ? 1 : Math.min(devicePixelRatio, MOST_PIXELS_PER_PIXEL);
    if (this.renderer.getPixelRatio() !== ratio) this.renderer.setPixelRatio(ratio);
  }

  private fit(): void {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, MOST_PIXELS_PER_PIXEL));
    const size = this.renderer.getSize(new Vector2());
    if (size.x !== width || size.y !== height) this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.onResize();
    // A canvas that has a new size is empty: draw before the page is painted.
    this.renderer.render(this.scene, this.camera);
  }
}
