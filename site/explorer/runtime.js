// onnxruntime-web behind one function: run(name, inputs). One call at a time, files kept.

let ort, queue = Promise.resolve();
const sessions = new Map();

/** Fetches and starts the wasm. */
export async function start() {
  const [module, wasmBinary] = await Promise.all([import("./ort.mjs"), unpacked("ort.wasm.gz")]);
  ort = module;
  Object.assign(ort.env.wasm, { wasmBinary, numThreads: 1 });
  ort.env.logLevel = "error";
}

/** The bytes of a packed file, whether or not the server has unpacked it already. */
async function unpacked(url) {
  const packed = await bytes(url);
  if (new Uint8Array(packed)[0] !== 0x1f) return packed;
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

export async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.arrayBuffer();
}

function session(name) {
  if (!sessions.has(name)) {
    sessions.set(name, bytes(`${name}.onnx`).then((file) => ort.InferenceSession.create(file)));
  }
  return sessions.get(name);
}

/** Runs a file on {name: [numbers, shape]}; gives {name: {data, dims}}. */
export function run(name, inputs) {
  const result = queue.then(async () => {
    const feeds = {};
    for (const [key, [data, dims]] of Object.entries(inputs)) {
      feeds[key] = new ort.Tensor("float32", data, dims);
    }
    return (await session(name)).run(feeds);
  });
  queue = result.catch(() => {});
  return result;
}
