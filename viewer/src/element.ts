/** `<scenelift-viewer src="https://host/jobs/ID?token=...">`: a job's scene with everything to look at it. */

export class SceneliftViewer extends HTMLElement {
  static readonly observedAttributes = ["src"];
}

customElements.define("scenelift-viewer", SceneliftViewer);
