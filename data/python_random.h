// CPython's `random` module, bit for bit, so that published draws (few-shot splits, auxiliary
// classes) repeat. Sources: Matsumoto and Nishimura 1998 (MT19937, init_by_array) and
// CPython 3.9-3.13 Lib/random.py, Modules/_randommodule.c.
#pragma once
#include <array>

#include "../tensor/core.h"

namespace pupil::data {

class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed);  // random.seed(seed)
  uint32_t next();                       // getrandbits(32)
  int64_t below(int64_t n);              // _randbelow(n): uniform in 0 ... n - 1
  // sample(range(n), k): k different numbers in the order drawn; 0 <= k <= n.
  std::vector<int64_t> sample(int64_t n, int64_t k);

 private:
  std::array<uint32_t, 624> state_;
  size_t at_ = 624;
};

// Positions of `shots` samples of each class, a class after another in the order of their first
// appearance in `labels`, each class drawn by one sample() of the same stream; all of a class that
// has no more. The split of CoOp (KaiyangZhou/Dassl.pytorch, generate_fewshot_dataset).
std::vector<int64_t> few_shot(std::span<const int64_t> labels, int64_t shots, uint64_t seed);

}  // namespace pupil::data
