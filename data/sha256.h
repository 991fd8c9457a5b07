// SHA-256 (FIPS 180-4), the identity of data sets and checkpoints in headers and run records.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace pupil::data {

class Sha256 {
 public:
  void add(const void* bytes, size_t count);
  std::string hex() const;  // of everything added so far, 64 lower-case digits

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t block_[64] = {};
  uint64_t count_ = 0;
};

}  // namespace pupil::data
