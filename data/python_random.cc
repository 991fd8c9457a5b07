#include "python_random.h"

#include <bit>
#include <numeric>
#include <set>

namespace pupil::data {

constexpr size_t kWords = 624, kShift = 397;

// init_by_array over the 32-bit words of the seed, least significant first, at least one.
PythonRandom::PythonRandom(uint64_t seed) {
  std::vector<uint32_t> key{uint32_t(seed)};
  if (seed >> 32) key.push_back(uint32_t(seed >> 32));
  state_[0] = 19650218u;
  for (size_t i = 1; i < kWords; i++)
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + uint32_t(i);
  size_t i = 1, j = 0;
  auto advance = [&] {
    if (++i < kWords) return;
    state_[0] = state_[kWords - 1];
    i = 1;
  };
  auto mixed = [&](uint32_t factor) {
    return state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * factor);
  };
  for (size_t k = std::max(kWords, key.size()); k > 0; k--) {
    state_[i] = mixed(1664525u) + key[j] + uint32_t(j);
    advance();
    j = (j + 1) % key.size();
  }
  for (size_t k = kWords - 1; k > 0; k--) {
    state_[i] = mixed(1566083941u) - uint32_t(i);
    advance();
  }
  state_[0] = 0x80000000u;
}

uint32_t PythonRandom::next() {
  if (at_ == kWords) {
    for (size_t k = 0; k < kWords; k++) {
      uint32_t y = (state_[k] & 0x80000000u) | (state_[(k + 1) % kWords] & 0x7fffffffu);
      state_[k] = state_[(k + kShift) % kWords] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0u);
    }
    at_ = 0;
  }
  uint32_t y = state_[at_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

int64_t PythonRandom::below(int64_t n) {
  PUPIL_CHECK(n > 0 && n <= int64_t(UINT32_MAX), "PythonRandom: below(", n, ")");
  int bits = std::bit_width(uint64_t(n));
  for (;;)
    if (int64_t r = next() >> (32 - bits); r < n) return r;
}

std::vector<int64_t> PythonRandom::sample(int64_t n, int64_t k) {
  PUPIL_CHECK(k >= 0 && k <= n, "PythonRandom: sample of ", k, " from ", n);
  int64_t set_size = 21;  // above it CPython remembers what it drew, else it shrinks a pool
  if (k > 5) {
    int64_t power = 1;
    while (power < 3 * k) power *= 4;
    set_size += power;
  }
  std::vector<int64_t> drawn;
  if (n <= set_size) {
    std::vector<int64_t> pool(static_cast<size_t>(n));
    std::iota(pool.begin(), pool.end(), 0);
    for (int64_t i = 0; i < k; i++) {
      size_t j = size_t(below(n - i));
      drawn.push_back(pool[j]);
      pool[j] = pool[size_t(n - i - 1)];
    }
    return drawn;
  }
  std::set<int64_t> seen;
  for (int64_t i = 0; i < k; i++) {
    int64_t j = below(n);
    while (!seen.insert(j).second) j = below(n);
    drawn.push_back(j);
  }
  return drawn;
}

std::vector<int64_t> few_shot(std::span<const int64_t> labels, int64_t shots, uint64_t seed) {
  std::vector<std::vector<int64_t>> members;
  std::map<int64_t, size_t> place;
  for (size_t i = 0; i < labels.size(); i++) {
    auto [at, fresh] = place.try_emplace(labels[i], members.size());
    if (fresh) members.emplace_back();
    members[at->second].push_back(int64_t(i));
  }
  PythonRandom random(seed);
  std::vector<int64_t> chosen;
  for (const std::vector<int64_t>& of_class : members) {
    if (int64_t(of_class.size()) < shots) {
      chosen.insert(chosen.end(), of_class.begin(), of_class.end());
      continue;
    }
    for (int64_t i : random.sample(int64_t(of_class.size()), shots))
      chosen.push_back(of_class[size_t(i)]);
  }
  return chosen;
}

}  // namespace pupil::data
