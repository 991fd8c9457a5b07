#include <gtest/gtest.h>

#include "tensor/memory.h"

// All tests run with poisoned fresh memory and guards after every block.
int main(int argc, char** argv) {
  pupil::set_poison(true);
  pupil::set_redzones(true);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
