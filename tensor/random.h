// Philox4x32-10 (Salmon et al. 2011, Random123), indexed by element, never by thread: the launch
// geometry is not in the counter, so the bits do not depend on threads or device.
#pragma once
#include "core.h"

namespace pupil {

struct U4 {
  uint32_t x, y, z, w;
};

PUPIL_HD inline U4 philox(uint64_t seed, U4 counter) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  U4 c = counter;
  for (int round = 0; round < 10; round++) {
    uint64_t a = uint64_t(0xD2511F53u) * c.x, b = uint64_t(0xCD9E8D57u) * c.z;
    c = U4{uint32_t(b >> 32) ^ c.y ^ key0, uint32_t(b), uint32_t(a >> 32) ^ c.w ^ key1,
           uint32_t(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// One stream of random numbers: element i of call number `op` of training step `step`.
struct RngKey {
  uint64_t seed = 0;
  uint32_t op = 0;
  uint64_t step = 0;
};

PUPIL_HD inline uint32_t random_bits(const RngKey& key, int64_t i) {
  U4 r = philox(key.seed, U4{uint32_t(i >> 2), key.op ^ (uint32_t(i >> 34) << 20),
                             uint32_t(key.step), uint32_t(key.step >> 32)});
  switch (i & 3) {
    case 0:
      return r.x;
    case 1:
      return r.y;
    case 2:
      return r.z;
    default:
      return r.w;
  }
}

// Uniform in [0, 1), a multiple of 2^-24: exact on every device.
PUPIL_HD inline float uniform(const RngKey& key, int64_t i) {
  return float(random_bits(key, i) >> 8) * 0x1p-24f;
}

// Standard normal by Box-Muller in double precision on the host; for initial weights and samplers.
double normal(const RngKey&, int64_t i);

// Stable 32-bit name of a stream (FNV-1a), so that values depend on names and not on call order.
uint32_t stream_id(std::string_view name);

// The whole random state of a training run: two integers.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t step = 0) : seed_(seed), step_(step) {}
  RngKey next() { return {seed_, op_++, step_}; }  // a fresh stream for the next op of this step
  void advance() {                                 // once, after backward
    step_++;
    op_ = 0;
  }
  uint64_t seed() const { return seed_; }
  uint64_t step() const { return step_; }

 private:
  uint64_t seed_, step_;
  uint32_t op_ = 0;
};

}  // namespace pupil
