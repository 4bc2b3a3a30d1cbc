// What Linformer would learn: the one thing that is computed here and not by torch's exports.

/** Linformer's projection (r n): averages of runs of neighbours, or a fresh one. */
export function projected(r, n, fresh, most) {
  const e = new Float32Array(r * n), run = n / r;
  for (let i = 0; i < r; i++) {
    for (let j = 0; j < n; j++) {
      const average = Math.floor(j / run) === i ? 1 / run : 0;
      e[i * n + j] = fresh ? fresh[i * most + j] / Math.sqrt(r) : average;
    }
  }
  return e;
}
