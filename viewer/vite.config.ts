import { defineConfig } from "vite";

/** Where the service answers, while `npm run dev` serves the page from its sources. */
const SERVICE = "http://127.0.0.1:8000";

export default defineConfig({
  base: "/static/",
  experimental: {
    // On other sites, what the component loads later lies beside the component, not at their own /static/.
    renderBuiltUrl: (_name, { hostType }) => (hostType === "js" ? { relative: true } : undefined),
  },
  build: {
    outDir: "../service/static",
    // The gallery lies there too; `npm run build` removes the old assets itself.
    emptyOutDir: false,
    target: "es2023",
    // Those that know light-dark(): translated, it would want a color-scheme of the pages that the component stands in.
    cssTarget: ["chrome123", "firefox126", "safari17.5"],
    modulePreload: { polyfill: false },
    // Spark carries its WebAssembly inside: large, and fetched only where Gaussians are shown.
    chunkSizeWarningLimit: 3000,
    rolldownOptions: {
      input: { index: "index.html", view: "view.html", "scenelift-viewer": "src/element.ts" },
      output: {
        // Other sites load the component by its name; everything else carries the hash of what it holds.
        entryFileNames: (chunk) =>
          chunk.name === "scenelift-viewer" ? "scenelift-viewer.js" : "assets/[name]-[hash].js",
        chunkFileNames: "assets/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
  server: {
    proxy: Object.fromEntries(
      ["/reconstruct", "/jobs", "/models", "/health", "/readyz", "/uploads", "/static/gallery"].map((path) => [path, SERVICE]),
    ),
  },
});
