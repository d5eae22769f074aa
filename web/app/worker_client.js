// The page's end of the wire. Messages go through as they are; a worker that breaks is ended here and said to be broken, once.

const DEFAULT_WORKER = new URL("../worker.js", import.meta.url);

/**
 * The address of the worker. Tests name another one, on this machine only: a link must not be able to put foreign code into the page.
 * @param {Location} location
 * @returns {URL}
 */
export function workerUrl(location) {
  const wanted = new URLSearchParams(location.search).get("worker");
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  if (!local || !wanted) return DEFAULT_WORKER;
  const url = new URL(wanted, location.href);
  return url.origin === location.origin ? url : DEFAULT_WORKER;
}

// The page's policy lets scripts be named through this one door only.
const door = globalThis.trustedTypes?.createPolicy("reflect-worker", { createScriptURL: (url) => url });

export class WorkerClient {
  /**
   * @param {URL} url
   * @param {{message: (message: object) => void, broken: (sentence: string, spoke: boolean) => void}} listeners
   *   `spoke` is false when it broke before it ever said a word: starting it again would not help.
   */
  constructor(url, listeners) {
    this.url = url;
    this.listeners = listeners;
    this.worker = null;
  }

  /** Starts a worker, instead of the one before. @param {"auto"|"gpu"|"cpu"} prefer */
  start(prefer) {
    this.end();
    const worker = new Worker(door ? door.createScriptURL(this.url.href) : this.url, { type: "module", name: "reflect" });
    let spoke = false;
    const broken = (sentence) => {
      if (this.worker !== worker) return;
      this.end();
      this.listeners.broken(sentence, spoke);
    };
    worker.addEventListener("message", ({ data }) => {
      if (this.worker !== worker || typeof data !== "object" || data === null) return;
      spoke = true;
      if (data.type === "error" && data.fatal) broken(data.message);
      else this.listeners.message(data);
    });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      broken(spoke ? `The worker stopped: ${event.message || "it gave no reason"}.` : "The worker of this page could not be started.");
    });
    worker.addEventListener("messageerror", () => broken("A message of the worker could not be read."));
    this.worker = worker;
    this.post({ type: "hello", prefer });
  }

  /** Sends a message; without a worker it is lost, and the caller has been told so by `broken`. @param {object} message */
  post(message) {
    this.worker?.postMessage(message);
  }

  end() {
    this.worker?.terminate();
    this.worker = null;
  }
}
