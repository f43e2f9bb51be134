"use strict";
// The two-layer network σ(XW)V with σ = x² on addition modulo M, in double precision: the training step, the optimizers
// and the columns of li2_lightning (docs/columns.md). tests/analysis/test_play.py compares every number with them.
// Matrices are row by row in a Float64Array.

/** A (n×m) times B (m×p). */
function product(A, B, n, m, p) {
  const C = new Float64Array(n * p);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < m; k++) {
      const a = A[i * m + k];
      for (let j = 0, c = i * p, b = k * p; j < p; j++) C[c++] += a * B[b++];
    }
  }
  return C;
}

/** Aᵀ (m×n) for A (n×m). */
function transpose(A, n, m) {
  const C = new Float64Array(n * m);
  for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) C[j * n + i] = A[i * m + j];
  return C;
}

const dot = (A, B) => { let sum = 0; for (let i = 0; i < A.length; i++) sum += A[i] * B[i]; return sum; };
const norm = A => Math.sqrt(dot(A, A));
const cosine = (A, B) => dot(A, B) / (norm(A) * norm(B));
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;

/** A (n×m) minus the mean of its rows. */
function centered(A, n, m) {
  const means = new Float64Array(m);
  for (let i = 0; i < n * m; i++) means[i % m] += A[i] / n;
  return A.map((value, i) => value - means[i % m]);
}

/** torch.optim.Adam; weight decay is added to the gradient, as in the other two. */
class Adam {
  constructor(rows, columns) {
    this.first = new Float64Array(rows * columns);
    this.second = new Float64Array(rows * columns);
    this.steps = 0;
  }

  update(weights, gradient, lr, decay) {
    this.steps += 1;
    const size = lr / (1 - 0.9 ** this.steps), correction = Math.sqrt(1 - 0.999 ** this.steps);
    for (let i = 0; i < weights.length; i++) {
      const g = gradient[i] + decay * weights[i];
      this.first[i] += 0.1 * (g - this.first[i]);
      this.second[i] = 0.999 * this.second[i] + 0.001 * g * g;
      weights[i] -= size * this.first[i] / (Math.sqrt(this.second[i]) / correction + 1e-8);
    }
  }
}

/** torch.optim.SGD with momentum .9. */
class Sgd {
  constructor(rows, columns) { this.momentum = new Float64Array(rows * columns); }

  update(weights, gradient, lr, decay) {
    for (let i = 0; i < weights.length; i++) {
      this.momentum[i] = 0.9 * this.momentum[i] + gradient[i] + decay * weights[i];
      weights[i] -= lr * this.momentum[i];
    }
  }
}

/** optimizers/muon: momentum .95 with Nesterov's step, made orthogonal by five steps of Newton–Schulz. */
class Muon {
  constructor(rows, columns) {
    Object.assign(this, {rows, columns, momentum: new Float64Array(rows * columns)});
  }

  update(weights, gradient, lr, decay) {
    const direction = new Float64Array(weights.length);
    for (let i = 0; i < weights.length; i++) {
      const g = gradient[i] + decay * weights[i];
      this.momentum[i] = 0.95 * this.momentum[i] + 0.05 * g;
      direction[i] = 0.95 * this.momentum[i] + 0.05 * g;
    }
    const orthogonal = orthogonalized(direction, this.rows, this.columns);
    for (let i = 0; i < weights.length; i++) weights[i] -= lr * orthogonal[i];
  }
}

/** X ← aX + b(XXᵀ)X + c(XXᵀ)²X on the smaller side, five times from X/‖X‖. */
function orthogonalized(matrix, rows, columns) {
  if (rows > columns) return transpose(orthogonalized(transpose(matrix, rows, columns), columns, rows), columns, rows);
  const size = Math.max(norm(matrix), 1e-7), [a, b, c] = [3.4445, -4.775, 2.0315];
  let X = matrix.map(value => value / size);
  for (let step = 0; step < 5; step++) {
    const A = product(X, transpose(X, rows, columns), rows, columns, rows);
    const square = product(A, A, rows, rows, rows);
    const P = A.map((value, i) => b * value + c * square[i] + (i % (rows + 1) === 0 ? a : 0));
    X = product(P, X, rows, rows, columns);
  }
  return X;
}

/** For W and V: the optimizer and its learning rate; those of configs/optimizer/. */
const OPTIMIZERS = {
  adam: {W: [Adam, 1e-3], V: [Adam, 1e-3]},
  sgd: {W: [Sgd, 1], V: [Sgd, 1]},
  muon: {W: [Muon, 0.02], V: [Adam, 1e-3]},
};

/** Random numbers in [0, 1) from a seed (mulberry32). */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

class Trainer {
  /**
   * @param M order of the group, K number of nodes.
   * @param order all rows a·M + b of the table in random order; the first ones are for training.
   * @param W (2M×K) and V (K×M) initial weights.
   */
  constructor(M, K, order, W, V) {
    Object.assign(this, {M, K, order, W, V, step: 0, name: "adam"});
    this.choose("adam");
  }

  /** A trainer with weights uniform in ±1/√inputs, as in li2_lightning. */
  static fromSeed(M, K, seed) {
    const draw = random(seed), order = Array.from({length: M * M}, (_, i) => i);
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(draw() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    const uniform = (rows, columns) =>
      Float64Array.from({length: rows * columns}, () => (2 * draw() - 1) / Math.sqrt(rows));
    return new Trainer(M, K, order, uniform(2 * M, K), uniform(K, M));
  }

  /** Start an optimizer anew, at the weights as they are. */
  choose(name) {
    const {W, V} = OPTIMIZERS[name];
    this.optimizers = {W: new W[0](2 * this.M, this.K), V: new V[0](this.K, this.M)};
    this.name = name;
  }

  /** Pre-activations z and features F (rows×K), and the differences D = Y − Ŷ (rows×M), of rows of the table. */
  forward(rows) {
    const {M, K, W, V} = this, n = rows.length;
    const z = new Float64Array(n * K), F = new Float64Array(n * K);
    rows.forEach((row, i) => {
      const a = Math.floor(row / M) * K, b = (M + row % M) * K;
      for (let j = 0; j < K; j++) {
        const value = W[a + j] + W[b + j];
        z[i * K + j] = value;
        F[i * K + j] = value * value;
      }
    });
    const D = product(F, V, n, K, M).map(value => -value);
    rows.forEach((row, i) => { D[i * M + this.label(row)] += 1; });
    return {n, z, F, D};
  }

  label(row) { return (Math.floor(row / this.M) + row % this.M) % this.M; }

  /** D without the mean of each row: what the loss mse depends on. */
  classCentered(D) {
    const {M} = this, out = D.slice();
    for (let i = 0; i < D.length; i += M) {
      let sum = 0;
      for (let c = 0; c < M; c++) sum += D[i + c];
      for (let c = 0; c < M; c++) out[i + c] -= sum / M;
    }
    return out;
  }

  /** One update on the first n rows; rates are those of the optimizer times `multiple`. */
  update(n, multiple, decay) {
    const {M, K, W, V} = this, rows = this.order.slice(0, n);
    const {z, F, D} = this.forward(rows);
    const dY = this.classCentered(D).map(value => -2 * value / n);
    const dV = product(transpose(F, n, K), dY, K, n, M);
    const dF = product(dY, transpose(V, K, M), n, M, K);
    const dW = new Float64Array(W.length);
    rows.forEach((row, i) => {
      const a = Math.floor(row / M) * K, b = (M + row % M) * K;
      for (let j = 0; j < K; j++) {
        const value = 2 * z[i * K + j] * dF[i * K + j];
        dW[a + j] += value;
        dW[b + j] += value;
      }
    });
    this.optimizers.W.update(W, dW, multiple * OPTIMIZERS[this.name].W[1], decay);
    this.optimizers.V.update(V, dV, multiple * OPTIMIZERS[this.name].V[1], decay);
    this.step += 1;
  }

  /** The columns of metrics.csv for the weights as they are, by name, with the first n rows for training. */
  measure(n) {
    const {M, K, V} = this, found = {step: this.step};
    const train = this.order.slice(0, n), state = this.forward(train);
    for (const [split, rows, {D}] of [["train", train, state], ["test", this.order.slice(n), null]]
      .map(([name, rows, known]) => [name, rows, known || this.forward(rows)])) {
      const centeredD = this.classCentered(D);
      found[`${split}/loss`] = dot(centeredD, centeredD) / rows.length;
      found[`${split}/accuracy`] = mean(rows.map((row, i) => this.isRight(row, D.subarray(i * M, (i + 1) * M)) ? 1 : 0));
    }
    const R = centered(state.D, n, M), centeredF = centered(state.F, n, K);
    const Y = new Float64Array(n * M);
    train.forEach((row, i) => { Y[i * M + this.label(row)] = 1; });
    const centeredY = centered(Y, n, M);
    const G = product(R, transpose(V, K, M), n, M, K);
    const targets = product(transpose(centeredY, n, M), centeredF, M, n, K);
    const residuals = product(transpose(R, n, M), centeredF, M, n, K);
    found["gradient/norm"] = norm(G);
    found["gradient/independence"] = cosine(G, product(centeredY, targets, n, M, K));
    found["gradient/coupling"] = cosine(G, product(R, residuals, n, M, K));
    const energies = this.unitEnergies(targets), shares = this.shares();
    found["energy/mean"] = mean(energies);
    found["energy/max"] = Math.max(...energies);
    const purities = Array.from({length: K}, (_, j) => Math.max(...shares.map(block => block[j])));
    found["features/purity"] = mean(purities);
    found["features/coverage"] = shares.filter(block => block.some(share => share > 0.5)).length;
    return found;
  }

  /** Whether the largest output, 1 − D at the label and −D elsewhere, is that of the label. */
  isRight(row, D) {
    const label = this.label(row);
    let best = -1, largest = -Infinity;
    for (let c = 0; c < this.M; c++) {
      const output = (c === label ? 1 : 0) - D[c];
      if (output > largest) [best, largest] = [c, output];
    }
    return best === label;
  }

  /** E = ½‖Ỹᵀσ(Xw)‖²/‖w‖⁴ of every node, from ỸᵀF̃ (M×K). */
  unitEnergies(targets) {
    const {M, K, W} = this, energies = new Array(K).fill(0), squares = new Array(K).fill(0);
    for (let i = 0; i < M * K; i++) energies[i % K] += 0.5 * targets[i] ** 2;
    for (let i = 0; i < 2 * M * K; i++) squares[i % K] += W[i] ** 2;
    return energies.map((energy, j) => energy / squares[j] ** 2);
  }

  /** For each frequency k = 1 … ⌊M/2⌋ the share of ‖w‖² (without the constant part) in it, for every node. */
  shares() {
    const {M, K, W} = this, blocks = [];
    for (let k = 1; 2 * k <= M; k++) {
      const power = new Float64Array(K), weight = (2 * k === M ? 1 : 2) / M;
      for (const operand of [0, 1]) {
        const real = new Float64Array(K), imaginary = new Float64Array(K);
        for (let x = 0; x < M; x++) {
          const angle = 2 * Math.PI * ((k * x) % M) / M, c = Math.cos(angle), s = Math.sin(angle);
          for (let j = 0, w = (operand * M + x) * K; j < K; j++, w++) {
            real[j] += c * W[w];
            imaginary[j] += s * W[w];
          }
        }
        for (let j = 0; j < K; j++) power[j] += weight * (real[j] ** 2 + imaginary[j] ** 2);
      }
      blocks.push(power);
    }
    const total = blocks.reduce((sum, power) => sum.map((value, j) => value + power[j]), new Float64Array(K));
    return blocks.map(power => power.map((value, j) => value / total[j]));
  }
}

if (typeof module !== "undefined") module.exports = {Trainer, OPTIMIZERS};
