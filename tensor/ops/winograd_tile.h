// One tile of Winograd's convolution F(4x4, 3x3), for 16 channels at once. Notation of the paper: a
// tile d of 6x6 inputs and a kernel g become V = B' d B and U = G g G' with 36 frequencies, their
// products M give 4x4 results A' M A. A gradient goes the same ways back.
#pragma once
#include "../onednn.h"
#include "lanes.h"

namespace pupil::winograd {
namespace {

// The points 0, a, -a, b, -b and infinity, whose powers are exact. With 5/8 and 3/2 the rounding
// error is a third of that of the usual 1 and 2.
constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;

// B' d
inline void input_transform(const Lanes* d, Lanes* v) {
  Lanes even_a = d[4] - b2 * d[2], odd_a = a * d[3] - (a * b2) * d[1];
  Lanes even_b = d[4] - a2 * d[2], odd_b = b * d[3] - (b * a2) * d[1];
  v[0] = (a2 * b2) * d[0] - (a2 + b2) * d[2] + d[4];
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = (a2 * b2) * d[1] - (a2 + b2) * d[3] + d[5];
}
// A' m
inline void output_transform(const Lanes* m, Lanes* y) {
  Lanes even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = a * odd_a + b * odd_b;
  y[2] = a2 * even_a + b2 * even_b;
  y[3] = (a2 * a) * odd_a + (b2 * b) * odd_b + m[5];
}
// A y
inline void output_adjoint(const Lanes* y, Lanes* m) {
  Lanes even_a = y[0] + a2 * y[2], odd_a = a * y[1] + (a2 * a) * y[3];
  Lanes even_b = y[0] + b2 * y[2], odd_b = b * y[1] + (b2 * b) * y[3];
  m[0] = y[0];
  m[1] = even_a + odd_a;
  m[2] = even_a - odd_a;
  m[3] = even_b + odd_b;
  m[4] = even_b - odd_b;
  m[5] = y[3];
}
constexpr float weight_0 = 1 / (a2 * b2), weight_a = 1 / (2 * a2 * (a2 - b2)),
                weight_b = 1 / (2 * b2 * (b2 - a2));
// G g
inline void weight_transform(const Lanes* g, Lanes* u) {
  Lanes even_a = weight_a * g[0] + (weight_a * a2) * g[2], odd_a = (weight_a * a) * g[1];
  Lanes even_b = weight_b * g[0] + (weight_b * b2) * g[2], odd_b = (weight_b * b) * g[1];
  u[0] = weight_0 * g[0];
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
}
// G' u
inline void weight_adjoint(const Lanes* u, Lanes* g) {
  Lanes even_a = u[1] + u[2], odd_a = u[1] - u[2], even_b = u[3] + u[4], odd_b = u[3] - u[4];
  g[0] = weight_0 * u[0] + weight_a * even_a + weight_b * even_b;
  g[1] = (weight_a * a) * odd_a + (weight_b * b) * odd_b;
  g[2] = (weight_a * a2) * even_a + (weight_b * b2) * even_b + u[5];
}

// Images in blocks of 16 channels, cut into tiles that are 4 results wide.
struct Side {
  int64_t blocks, height, width, padding_h, padding_w;
  int64_t offset(int64_t n, int64_t block, int64_t y, int64_t x) const {
    return (((n * blocks + block) * height + y) * width + x) * kLanes;
  }
};
struct Tile {
  int64_t image, top, left;  // of its results
};
struct Tiles {
  int64_t batch, down, across;
  int64_t count() const { return batch * down * across; }
  Tile at(int64_t i) const { return {i / across / down, i / across % down * 4, i % across * 4}; }
};
// The SIZE x SIZE pixels of a tile, zeros outside the image, as 36 frequencies that lie `stride`
// apart: of an input tile (6), or of a tile of cotangents (4).
template <int SIZE>
inline void read_tile(const Side& s, const float* image, int64_t block, const Tile& tile, float* to,
                      int64_t stride) {
  auto transform = SIZE == 6 ? input_transform : output_adjoint;
  int64_t top = tile.top - s.padding_h, left = tile.left - s.padding_w;
  Lanes half[SIZE][6], in[SIZE], out[6];
  const float* corner = image + s.offset(tile.image, block, 0, 0);
  bool inside = top >= 0 && left >= 0 && top + SIZE <= s.height && left + SIZE <= s.width;
  for (int x = 0; x < SIZE; x++) {
    for (int y = 0; y < SIZE; y++) {
      int64_t at_y = top + y, at_x = left + x;
      bool there = inside || (at_y >= 0 && at_x >= 0 && at_y < s.height && at_x < s.width);
      in[y] = there ? load(corner + (at_y * s.width + at_x) * kLanes) : _mm512_setzero_ps();
    }
    transform(in, half[x]);
  }
  for (int row = 0; row < 6; row++) {
    for (int x = 0; x < SIZE; x++) in[x] = half[x][row];
    transform(in, out);
    for (int k = 0; k < 6; k++) store(to + (6 * row + k) * stride, out[k]);
  }
}

// A' M A + bias of one tile, cut at the image's border; then what the tail says.
inline void write_tile(const float* m, int64_t stride, Lanes bias, const onednn::Tail& tail,
                       const Side& s, float* image, int64_t block, const Tile& tile) {
  Lanes half[6][4], in[6], out[4];
  for (int x = 0; x < 6; x++) {
    for (int y = 0; y < 6; y++) in[y] = load(m + (6 * y + x) * stride);
    output_transform(in, half[x]);
  }
  int64_t corner = s.offset(tile.image, block, tile.top, tile.left);
  for (int y = 0; y < 4 && tile.top + y < s.height; y++) {
    for (int x = 0; x < 6; x++) in[x] = half[x][y];
    output_transform(in, out);
    for (int x = 0; x < 4 && tile.left + x < s.width; x++) {
      int64_t at = corner + (y * s.width + x) * kLanes;
      Lanes result = out[x] + bias;
      if (tail.residual) result += load(static_cast<const float*>(tail.residual) + at);
      store(image + at, activated(tail.activation, result));
    }
  }
}

}  // namespace
}  // namespace pupil::winograd
