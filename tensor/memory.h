// Two lifetimes, two arenas: parameters live in the model arena, activations and their gradients in
// the step arena. A deterministic program gets the same addresses in every step.
#pragma once
#include "tensor.h"

namespace pupil {

struct MemoryStats {
  size_t live = 0;      // bytes handed out now
  size_t peak = 0;      // largest `live` so far
  size_t reserved = 0;  // bytes of the address range ever used
  size_t allocations = 0;
};

// Best-fit intervals on one reserved address range, grown by touching pages; thread-safe.
class Arena {
 public:
  static Arena& step(Device);
  static Arena& model(Device);
  static Arena& current(Device);  // step inside a StepScope of this thread, else model

  void* get(size_t bytes);
  void put(void*, size_t bytes) noexcept;
  void label(void*, const Shape&, DType, const char* op);  // for reports
  MemoryStats stats() const;
  uint64_t trace() const;        // hash of this step's get/put sequence; equal: equal addresses
  void set_limit(size_t bytes);  // a hard cap; beyond it get() throws with the largest tensors
  std::string largest(int count) const;  // the largest live tensors, one per line
  void begin_step();                     // resets trace()

 private:
  explicit Arena(Device, const char* name);
  struct State;
  std::unique_ptr<State> state_;
};

// One training step. Its destructor checks that the step arena is empty and throws with every
// tensor that outlived the step (shape, dtype, op).
struct StepScope {
  explicit StepScope(Device = {});
  ~StepScope() noexcept(false);
  StepScope(const StepScope&) = delete;

 private:
  Device device_;
  bool outer_;
};

// Inside it, new tensors come from the model arena even within a StepScope.
struct ModelScope {
  ModelScope();
  ~ModelScope();

 private:
  bool outer_;
};

void set_poison(bool);    // fresh memory is filled with 0xff (NaN); on in all tests
void set_redzones(bool);  // a guard after every block, checked when it is freed; on in all tests
// PUPIL_DIRECT_ALLOC=1: every block comes straight from the heap, so that sanitizers see it.

}  // namespace pupil
