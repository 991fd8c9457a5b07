// The products M = U V of a tile's 36 frequencies (winograd_tile.h), summed over channels, are 36
// products of matrices.
// Compiled for AVX-512 (lanes.h).
#include "winograd.h"

#ifdef __AVX512F__
#include <omp.h>

#include "../runtime.h"
#include "winograd_tile.h"
#endif

namespace pupil::winograd {

#ifdef __AVX512F__
namespace {

constexpr int64_t kFrequencies = 36, kRows = 14, kColumns = 8;

Tiles tiles_of(const ConvGeometry& s, int64_t height, int64_t width) {
  return {s.batch, (height + 3) / 4, (width + 3) / 4};
}

// Where a tile lies in (tile / kRows, block, tile % kRows, 16): in the order of `multiply`.
inline int64_t place(int64_t tile, int64_t block, int64_t blocks) {
  return ((tile / kRows * blocks + block) * kRows + tile % kRows) * kLanes;
}

// The tiles that are worked on at a time: `count` of them, in memory that has room for more.
struct Chunk {
  Tiles tiles;
  int64_t first, count, room;
};
Chunk chunk_at(const Tiles& tiles, int64_t first, int64_t room) {
  return {tiles, first, smaller(tiles.count() - first, room), room};
}

// The frequencies of some blocks of channels; memory for one frequency holds `blocks` of them.
template <int SIZE>
void tiles_to_frequencies(const Side& s, const float* image, const Chunk& chunk,
                          int64_t first_block, int64_t end_block, int64_t blocks, float* to) {
  for (int64_t block = first_block; block < end_block; block++)
    for (int64_t t = 0; t < chunk.count; t++)
      read_tile<SIZE>(s, image, block, chunk.tiles.at(chunk.first + t),
                      to + place(t, block - first_block, blocks), blocks * chunk.room * kLanes);
}

// m[group][tile][16] = sum_c v[c / 16][tile][c % 16] u[c][group][16] for kRows tiles and GROUPS
// blocks of 16 outputs: as many sums as registers hold.
template <int GROUPS>
inline void multiply(int64_t channel_blocks, const float* v, const float* u, float* m) {
  Lanes sum[kRows][GROUPS];
  for (int r = 0; r < kRows; r++)
    for (int g = 0; g < GROUPS; g++) sum[r][g] = _mm512_setzero_ps();
  for (int64_t block = 0; block < channel_blocks; block++) {
    const float* from = v + block * kRows * kLanes;
    for (int64_t c = 0; c < kLanes; c++, u += GROUPS * kLanes) {
      Lanes weight[GROUPS];
      for (int g = 0; g < GROUPS; g++) weight[g] = load(u + g * kLanes);
#pragma GCC unroll 14
      for (int r = 0; r < kRows; r++) {
        Lanes value = all(from[r * kLanes + c]);
        for (int g = 0; g < GROUPS; g++) sum[r][g] = _mm512_fmadd_ps(value, weight[g], sum[r][g]);
      }
    }
  }
  for (int g = 0; g < GROUPS; g++)
    for (int r = 0; r < kRows; r++) store(m + (g * kRows + r) * kLanes, sum[r][g]);
}

// Where the 9 weights of an output and a channel lie.
struct Kernels {
  int64_t outputs, channels;
  int64_t output_stride, channel_stride;
  bool turned;  // by 180 degrees
};

Kernels kernels_of(const ConvGeometry& s) {
  return {s.outputs, s.channels, s.channels * 9, 9, false};
}

// `multiply` takes 32 outputs at once, or the 16 that are left.
int64_t outputs_at_once(const Kernels& s, int64_t first) {
  return s.outputs - first < 32 ? 16 : 32;
}

// U of the next 32 or 16 outputs, as (frequency, channel, output): what `multiply` reads in order.
void transform_weights(const Kernels& s, const float* weight, int64_t first, float* u) {
  int64_t count = outputs_at_once(s, first), stride = s.channels * count;
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t o = 0; o < count; o += kLanes) {
      alignas(64) float k[9][kLanes];
      for (int lane = 0; lane < kLanes; lane++) {
        const float* w = weight + (first + o + lane) * s.output_stride + c * s.channel_stride;
        for (int i = 0; i < 9; i++) k[i][lane] = w[s.turned ? 8 - i : i];
      }
      Lanes half[3][6], in[3], out[6];
      for (int x = 0; x < 3; x++) {
        for (int y = 0; y < 3; y++) in[y] = load(k[3 * y + x]);
        weight_transform(in, half[x]);
      }
      for (int row = 0; row < 6; row++) {
        for (int x = 0; x < 3; x++) in[x] = half[x][row];
        weight_transform(in, out);
        for (int i = 0; i < 6; i++) store(u + (6 * row + i) * stride + c * count + o, out[i]);
      }
    }
}

// The way back of one gradient U of some outputs, added up over `parts` that lie `between` apart.
void write_weight_gradient(const float* gu, int64_t parts, int64_t between, int64_t stride,
                           int64_t first, int64_t count, int64_t channels, float* gw, float beta) {
  for (int64_t c = 0; c < channels; c++)
    for (int64_t o = 0; o < count; o += kLanes) {
      Lanes half[6][3], in[6], out[3];
      for (int x = 0; x < 6; x++) {
        for (int y = 0; y < 6; y++) {
          const float* p = gu + (6 * y + x) * stride + c * count + o;
          in[y] = load(p);
          for (int64_t part = 1; part < parts; part++) in[y] += load(p + part * between);
        }
        weight_adjoint(in, half[x]);
      }
      alignas(64) float k[9][kLanes];
      for (int y = 0; y < 3; y++) {
        for (int x = 0; x < 6; x++) in[x] = half[x][y];
        weight_adjoint(in, out);
        for (int x = 0; x < 3; x++) store(k[3 * y + x], out[x]);
      }
      for (int lane = 0; lane < kLanes; lane++) {
        float* to = gw + ((first + o + lane) * channels + c) * 9;
        for (int i = 0; i < 9; i++) to[i] = beta == 0 ? k[i][lane] : k[i][lane] + beta * to[i];
      }
    }
}

// Kernels that fit into the second-level cache are transformed once, and every thread takes tiles
// through all three stages; of larger ones the threads share the outputs and transform what they
// need of the kernels for some hundred tiles at a time, whose inputs all of them read.
bool shares_tiles(int64_t channels, int64_t outputs) {
  return kFrequencies * channels * outputs * 4 <= (4 << 20);
}
int64_t tiles_at_once(int64_t channels, int64_t outputs, int64_t tiles) {
  bool share = shares_tiles(channels, outputs);
  bool small = kFrequencies * channels * outputs * 4 <= (1 << 20);
  int64_t bytes = share ? (small ? 512 << 10 : 2 << 20) : 8 << 20,
          least = share ? 2 * kRows : 8 * kRows;
  int64_t each = kFrequencies * 4 * (share ? channels + outputs : channels);
  int64_t fit = larger(bytes / each / kRows * kRows, least);
  int64_t whole = share ? (tiles + cpu_threads() - 1) / cpu_threads() : tiles;
  return smaller(fit, (whole + kRows - 1) / kRows * kRows);
}

// M = U V of 16 or 32 outputs for all frequencies, then the results into the image.
void finish_tiles(const Side& in, const Side& out, const Chunk& chunk, int64_t first_output,
                  int64_t outputs, const float* v, const float* u, const float* bias,
                  const onednn::Tail& tail, float* m, float* y) {
  int64_t v_stride = in.blocks * chunk.room * kLanes, m_stride = outputs * chunk.room;
  int64_t u_stride = in.blocks * kLanes * outputs;
  for (int64_t f = 0; f < kFrequencies; f++)
    for (int64_t t = 0; t < chunk.count; t += kRows) {
      const float* from = v + f * v_stride + place(t, 0, in.blocks);
      float* to = m + f * m_stride + place(t, 0, outputs / kLanes);
      if (outputs == 32)
        multiply<2>(in.blocks, from, u + f * u_stride, to);
      else
        multiply<1>(in.blocks, from, u + f * u_stride, to);
    }
  for (int64_t o = 0; o < outputs; o += kLanes) {
    Lanes b = bias ? load(bias + first_output + o) : _mm512_setzero_ps();
    for (int64_t t = 0; t < chunk.count; t++)
      write_tile(m + place(t, o / kLanes, outputs / kLanes), m_stride, b, tail, out, y,
                 (first_output + o) / kLanes, chunk.tiles.at(chunk.first + t));
  }
}

// One convolution with 3x3 kernels: images `in` to images `out`.
void convolve(const Side& in, const Side& out, int64_t batch, const Kernels& kernels,
              const float* x, const float* weight, const float* transformed, const float* bias,
              const onednn::Tail& tail, float* y, float* scratch) {
  int64_t channels = kernels.channels, outputs = kernels.outputs;
  int64_t u_of_output = kFrequencies * channels;
  Tiles tiles{batch, (out.height + 3) / 4, (out.width + 3) / 4};
  int64_t room = tiles_at_once(channels, outputs, tiles.count());
  int64_t v_size = kFrequencies * channels * room, m_size = kFrequencies * 32 * room;
  if (shares_tiles(channels, outputs)) {
    float *own = scratch, *buffers = own + u_of_output * outputs;
    const float* u = transformed ? transformed : own;
#pragma omp parallel num_threads(cpu_threads())
    {
      float *v = buffers + omp_get_thread_num() * (v_size + m_size), *m = v + v_size;
      if (!transformed) {
#pragma omp for
        for (int64_t o = 0; o < outputs; o += 32)
          transform_weights(kernels, weight, o, own + o * u_of_output);
      }
#pragma omp for schedule(static)
      for (int64_t first = 0; first < tiles.count(); first += room) {
        Chunk chunk = chunk_at(tiles, first, room);
        tiles_to_frequencies<6>(in, x, chunk, 0, in.blocks, in.blocks, v);
        for (int64_t o = 0; o < outputs; o += 32)
          finish_tiles(in, out, chunk, o, outputs_at_once(kernels, o), v, u + o * u_of_output, bias,
                       tail, m, y);
      }
    }
    return;
  }
  float *v = scratch, *buffers = v + v_size;
  int64_t u_size = u_of_output * 32;
#pragma omp parallel num_threads(cpu_threads())
  for (int64_t first = 0; first < tiles.count(); first += room) {
    Chunk chunk = chunk_at(tiles, first, room);
    float *own = buffers + omp_get_thread_num() * (u_size + m_size), *m = own + u_size;
#pragma omp for
    for (int64_t block = 0; block < in.blocks; block++)
      tiles_to_frequencies<6>(in, x, chunk, block, block + 1, in.blocks,
                              v + place(0, block, in.blocks));
#pragma omp for
    for (int64_t o = 0; o < outputs; o += 32) {
      if (!transformed) transform_weights(kernels, weight, o, own);
      finish_tiles(in, out, chunk, o, outputs_at_once(kernels, o), v,
                   transformed ? transformed + o * u_of_output : own, bias, tail, m, y);
    }
  }
}

// gu[c][group][16] += sum_t m[group][t][16] v[t][c] for kColumns channels of a block and GROUPS
// blocks of 16 outputs. v and m step from one kRows tiles to the next.
template <int GROUPS>
inline void accumulate(int64_t tiles, const float* m, int64_t m_step, const float* v,
                       int64_t v_step, float* gu) {
  Lanes sum[kColumns][GROUPS];
  for (int c = 0; c < kColumns; c++)
    for (int g = 0; g < GROUPS; g++) sum[c][g] = _mm512_setzero_ps();
  for (; tiles > 0; tiles -= kRows, m += m_step, v += v_step)
    for (int64_t t = 0; t < smaller(tiles, kRows); t++) {
      Lanes gradient[GROUPS];
      for (int g = 0; g < GROUPS; g++) gradient[g] = load(m + (g * kRows + t) * kLanes);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c++) {
        Lanes value = all(v[t * kLanes + c]);
        for (int g = 0; g < GROUPS; g++) sum[c][g] = _mm512_fmadd_ps(value, gradient[g], sum[c][g]);
      }
    }
  for (int c = 0; c < kColumns; c++)
    for (int g = 0; g < GROUPS; g++) {
      float* to = gu + (c * GROUPS + g) * kLanes;
      store(to, load(to) + sum[c][g]);
    }
}

void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, _mm512_setzero_ps());
}

// gu += V' (A gy A') of 16 or 32 outputs, for every frequency. m has `blocks` blocks of outputs,
// from which those are taken that begin at m.
void collect_tiles(const Chunk& chunk, int64_t channels, int64_t outputs, const float* v,
                   const float* m, int64_t blocks, float* gu, int64_t gu_stride) {
  for (int64_t f = 0; f < kFrequencies; f++)
    for (int64_t c = 0; c < channels; c += kColumns) {
      const float* from_v =
          v + f * channels * chunk.room + place(0, c / kLanes, channels / kLanes) + c % kLanes;
      const float* from_m = m + f * blocks * chunk.room * kLanes;
      float* to = gu + f * gu_stride + c * outputs;
      if (outputs == 32)
        accumulate<2>(chunk.count, from_m, blocks * kRows * kLanes, from_v, channels * kRows, to);
      else
        accumulate<1>(chunk.count, from_m, blocks * kRows * kLanes, from_v, channels * kRows, to);
    }
}

Side side(int64_t channels, int64_t height, int64_t width, int64_t padding_h, int64_t padding_w) {
  return {channels / kLanes, height, width, padding_h, padding_w};
}

}  // namespace

int64_t scratch(const ConvGeometry& s) {
  int64_t tiles = larger(tiles_of(s, s.height, s.width).count(),
                         tiles_of(s, s.out_height, s.out_width).count());
  int64_t widest = larger(larger(s.channels, s.outputs), 32),
          room = larger(tiles_at_once(s.channels, s.outputs, tiles),
                        tiles_at_once(s.outputs, s.channels, tiles));
  int64_t kernels = kFrequencies * s.channels * s.outputs, v = kFrequencies * widest * room;
  if (shares_tiles(s.channels, s.outputs)) return kernels + cpu_threads() * (kernels + 2 * v);
  return v + cpu_threads() * kFrequencies * 32 * (widest + room);
}

int64_t transformed_size(const ConvGeometry& s) { return kFrequencies * s.channels * s.outputs; }

void transform(const ConvGeometry& s, const float* weight, float* transformed) {
  Kernels kernels = kernels_of(s);
#pragma omp parallel for num_threads(cpu_threads())
  for (int64_t o = 0; o < s.outputs; o += 32)
    transform_weights(kernels, weight, o, transformed + o * kFrequencies * s.channels);
}

void forward(const ConvGeometry& s, const float* x, const float* weight, const float* bias,
             float* y, float* scratch, const onednn::Tail& tail, const float* transformed) {
  convolve(side(s.channels, s.height, s.width, s.padding_h, s.padding_w),
           side(s.outputs, s.out_height, s.out_width, 0, 0), s.batch, kernels_of(s), x, weight,
           transformed, bias, tail, y, scratch);
}

void input_gradient(const ConvGeometry& s, const float* gy, const float* weight, float* gx,
                    float* scratch) {
  convolve(side(s.outputs, s.out_height, s.out_width, 2 - s.padding_h, 2 - s.padding_w),
           side(s.channels, s.height, s.width, 0, 0), s.batch,
           {s.channels, s.outputs, 9, s.channels * 9, true}, gy, weight, nullptr, nullptr, {}, gx,
           scratch);
}

void weight_gradient(const ConvGeometry& s, const float* x, const float* gy, float* gw, float beta,
                     float* scratch) {
  Side in = side(s.channels, s.height, s.width, s.padding_h, s.padding_w),
       out = side(s.outputs, s.out_height, s.out_width, 0, 0);
  Tiles tiles = tiles_of(s, s.out_height, s.out_width);
  Kernels kernels = kernels_of(s);
  int threads = cpu_threads();
  int64_t room = tiles_at_once(s.channels, s.outputs, tiles.count());
  int64_t chunks = (tiles.count() + room - 1) / room;
  int64_t v_size = kFrequencies * s.channels * room;
  if (shares_tiles(s.channels, s.outputs)) {
    int64_t gu_stride = s.channels * s.outputs, gu_size = kFrequencies * gu_stride;
    int64_t own = gu_size + v_size + kFrequencies * s.outputs * room;
#pragma omp parallel num_threads(threads)
    {
      int thread = omp_get_thread_num();
      float *gu = scratch + thread * own, *v = gu + gu_size, *m = v + v_size;
      clear(gu, gu_size);
      for (int64_t i = chunks * thread / threads; i < chunks * (thread + 1) / threads; i++) {
        Chunk chunk = chunk_at(tiles, i * room, room);
        tiles_to_frequencies<6>(in, x, chunk, 0, in.blocks, in.blocks, v);
        tiles_to_frequencies<4>(out, gy, chunk, 0, out.blocks, out.blocks, m);
        for (int64_t o = 0; o < s.outputs; o += 32)
          collect_tiles(chunk, s.channels, outputs_at_once(kernels, o), v,
                        m + place(0, o / kLanes, out.blocks), out.blocks, gu + o * s.channels,
                        gu_stride);
      }
#pragma omp barrier
#pragma omp for
      for (int64_t o = 0; o < s.outputs; o += 32)
        write_weight_gradient(scratch + o * s.channels, threads, own, gu_stride, o,
                              outputs_at_once(kernels, o), s.channels, gw, beta);
    }
    return;
  }
  float *v = scratch, *buffers = v + v_size;
  int64_t m_size = kFrequencies * 32 * room, gu_stride = s.channels * 32,
          gu_size = kFrequencies * gu_stride;
#pragma omp parallel num_threads(threads)
  for (int64_t first = 0; first < tiles.count(); first += room) {
    Chunk chunk = chunk_at(tiles, first, room);
    float *gu = buffers + omp_get_thread_num() * (gu_size + m_size), *m = gu + gu_size;
#pragma omp for
    for (int64_t block = 0; block < in.blocks; block++)
      tiles_to_frequencies<6>(in, x, chunk, block, block + 1, in.blocks,
                              v + place(0, block, in.blocks));
#pragma omp for
    for (int64_t o = 0; o < s.outputs; o += 32) {
      int64_t some = outputs_at_once(kernels, o), blocks = some / kLanes;
      tiles_to_frequencies<4>(out, gy, chunk, o / kLanes, o / kLanes + blocks, blocks, m);
      clear(gu, gu_size);
      collect_tiles(chunk, s.channels, some, v, m, blocks, gu, gu_stride);
      write_weight_gradient(gu, 1, 0, gu_stride, o, some, s.channels, gw, first == 0 ? beta : 1);
    }
  }
}
#else
int64_t scratch(const ConvGeometry&) { return 0; }
int64_t transformed_size(const ConvGeometry&) { return 0; }
void transform(const ConvGeometry&, const float*, float*) {}
void forward(const ConvGeometry&, const float*, const float*, const float*, float*, float*,
             const onednn::Tail&, const float*) {}
void input_gradient(const ConvGeometry&, const float*, const float*, float*, float*) {}
void weight_gradient(const ConvGeometry&, const float*, const float*, float*, float, float*) {}
#endif

}  // namespace pupil::winograd
