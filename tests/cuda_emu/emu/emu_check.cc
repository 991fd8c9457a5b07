// Access checker for emulated kernels. Kernel files are compiled with -fsanitize=thread, but
// libtsan is not linked: the compiler's calls __tsan_readN / __tsan_writeN land here. Per access:
// is the address device memory (exact bounds, alive), shared memory, or something a kernel must not
// touch; was it ever written; is it ordered after the last conflicting access by a barrier (data
// races, found whatever the schedule was). This file itself must be compiled WITHOUT
// -fsanitize=thread.
#include <vector_types.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "emu_internal.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cudaemu {
namespace {
// A record: block instance (30 bits, counted over the whole run) | thread 10 | barrier epoch 12 |
// warp epoch 11 | atomic 1
uint64_t pack(uint64_t inst, unsigned t, unsigned be, unsigned we, bool at) {
  return inst << 34 | uint64_t(t & 1023) << 24 | uint64_t(be & 4095) << 12 |
         uint64_t(we & 2047) << 1 | at;
}
struct F {
  uint64_t inst;
  unsigned t, be, we;
  bool at;
};
F unpack(uint64_t v) {
  return {v >> 34, unsigned(v >> 24 & 1023), unsigned(v >> 12 & 4095), unsigned(v >> 1 & 2047),
          bool(v & 1)};
}
struct Cell {
  uint64_t w = 0, r = 0;
  uint32_t many = 0, pad = 0;
};  // per 2 bytes: last write, last read; many: 1 several lanes, 2 several warps read

struct {
  bool on = false;
  uint64_t inst = 0, first_inst = 0;
  unsigned be = 0, we[32] = {};
  const void* atomic_p = nullptr;
  size_t atomic_n = 0;
  const char* kernel = "";
  std::vector<Symbol> shared;  // function-local statics of writable sections
  Image img{};
  bool busy = false;                            // inside the checker itself
  std::vector<std::vector<Cell>*> alloc_cells;  // by allocation id
  std::vector<Cell>* cells_of(long id, size_t bytes) {
    if (size_t(id) >= alloc_cells.size()) alloc_cells.resize(size_t(id) + 64, nullptr);
    auto& p = alloc_cells[size_t(id)];
    if (!p) p = new std::vector<Cell>(bytes / 2 + 1);
    return p;
  }
  std::vector<std::vector<Cell>> shared_cells;
  std::vector<Cell> dyn_cells;
  Alloc* last_alloc = nullptr;
  long reported = 0;
  std::unordered_set<const void*> seen_pc;
} C;

void complain(const char* kind, const void* pc, const char* what, const std::string& where) {
  if (!C.seen_pc.insert(pc).second || ++C.reported > 20) return;  // one report per source location
  report(kind, "%s at %s, thread (%u,%u,%u) of block (%u,%u,%u): %s", what, source_line(pc).c_str(),
         threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, where.c_str());
}
std::string thread_name(const F& f) {
  return "thread " + std::to_string(f.t) +
         (f.inst == C.inst ? " of the same block" : " of another block");
}
bool ordered(const F& a) {  // is access a ordered before the current thread's access?
  if (a.inst < C.first_inst) return true;  // an earlier launch
  if (a.inst != C.inst) return false;      // another block of this launch
  if (a.t == running.tid || a.be != (C.be & 4095)) return true;
  return a.t / 32 == running.tid / 32 && a.we != (C.we[running.tid / 32] & 2047);
}
void touch(Cell& c, bool write, bool atomic, const void* pc,
           const std::string& (*name)(const void*), const void* p) {
  const unsigned t = running.tid;
  const uint64_t me = pack(C.inst, t, C.be, C.we[t / 32], atomic);
  if (c.w) {
    F w = unpack(c.w);
    if (!ordered(w) && !(w.at && atomic))
      complain("race", pc,
               write ? (w.at ? "plain write races with an atomic" : "write-write race")
                     : "read of a value written without a barrier in between",
               name(p) + ", other access by " + thread_name(w));
  }
  if (write && c.r) {
    const F r = unpack(c.r);
    const bool mine = r.inst == C.inst, same_be = r.be == (C.be & 4095);
    const bool warp_ordered = r.t / 32 == t / 32 && r.we != (C.we[t / 32] & 2047);
    const bool clash = r.inst < C.first_inst ? false
                       : !mine               ? true
                       : c.many == 2         ? same_be
                       : c.many == 1         ? same_be && !warp_ordered
                                             : !ordered(r);
    if (clash && !(r.at && atomic))
      complain("race", pc, "write races with an earlier read (no barrier in between)",
               name(p) + ", read by " + (c.many ? "several threads" : thread_name(r)));
  }
  if (write) c.w = me;
  if (!write || atomic) {
    const F r = unpack(c.r);
    if (!(c.r && r.inst == C.inst && r.be == (C.be & 4095)))
      c.many = 0;
    else if (r.t / 32 != t / 32)
      c.many = 2;  // readers in several warps
    else if (c.many != 2)
      c.many = r.we == (C.we[t / 32] & 2047) && (c.many == 1 || r.t != t) ? 1 : 0;
    c.r = me;
  }
}
std::string tmp;
const std::string& name_static(const void* p) {
  for (auto& s : C.shared)
    if (p >= s.lo && p < s.hi) {
      tmp = "__shared__ " + symbol_name(s.lo) + " + " +
            std::to_string(static_cast<const char*>(p) - s.lo) + " bytes";
      return tmp;
    }
  return tmp = "?";
}
const std::string& name_dyn(const void* p) {
  return tmp = "dynamic shared memory + " + std::to_string(static_cast<const char*>(p) - dyn_smem) +
               " of " + std::to_string(dyn_smem_size) + " bytes";
}
const std::string& name_dev(const void* p) {
  Alloc* a = find_alloc(p, true);
  return tmp = a ? "allocation #" + std::to_string(a->id) + " (" + std::to_string(a->size) +
                       " bytes) + " + std::to_string(static_cast<const char*>(p) - a->base)
                 : "?";
}

__attribute__((noinline)) void shared_access(std::vector<Cell>& cells, size_t off, size_t n,
                                             bool write, bool atomic, const void* pc,
                                             const std::string& (*name)(const void*),
                                             const char* p) {
  for (size_t i = off / 2; i <= (off + n - 1) / 2; ++i) {
    Cell& c = cells[i];
    if (unpack(c.w).inst != C.inst) c.w = 0;  // left by another block: another array
    if (unpack(c.r).inst != C.inst) c.r = c.many = 0;
    if ((!write || atomic) && unpack(c.w).inst != C.inst)
      complain("uninitialised-read", pc, "read of shared memory this block has not written",
               name(p));
    touch(c, write, atomic, pc, name, p);
  }
}

void check(const char* p, size_t n, bool write, const void* pc, bool atomic);
void access(const void* ptr, size_t n, bool write, const void* pc, bool atomic = false) {
  if (!running.stack_lo || C.busy || !n) return;  // host code in the same file, or this checker
  auto* p = static_cast<const char*>(ptr);
  if (p >= running.stack_lo && p < running.stack_hi) return;
  C.busy = true;
  check(p, n, write, pc, atomic);
  C.busy = false;
}
void check(const char* p, size_t n, bool write, const void* pc, bool atomic) {
  if (in_arena(p)) {
    Alloc* a = C.last_alloc;
    if (!a || p < a->base || p >= a->base + a->size || !a->live) C.last_alloc = a = find_alloc(p);
    if (!a || p + n > a->base + a->size) {
      Alloc* d = find_alloc(p, true);
      C.last_alloc = nullptr;
      if (d && !d->live)
        complain("use-after-free", pc, write ? "write" : "read",
                 name_dev(p) + ", freed by " + d->freed_by);
      else if (d)
        complain("out-of-bounds", pc, write ? "write" : "read",
                 std::to_string(n) + " bytes at " + name_dev(p));
      else
        complain("out-of-bounds", pc, write ? "write" : "read", "address in no allocation");
      abort_launch();  // the access itself must not happen
    }
    const size_t off = size_t(p - a->base);
    if (!write || atomic)
      for (size_t i = 0; i < n; ++i)
        if (!a->init[off + i]) {
          complain("uninitialised-read", pc, "read of device memory nothing has written",
                   name_dev(p));
          break;
        }
    if (write) std::fill_n(a->init.begin() + long(off), n, 1);
    auto& cells = *C.cells_of(a->id, a->size);
    for (size_t i = off / 2; i <= (off + n - 1) / 2; ++i)
      touch(cells[i], write, atomic, pc, name_dev, p);
    return;
  }
  if (p >= dyn_region.lo && p < dyn_region.hi) {
    if (p < dyn_smem || p + n > dyn_smem + dyn_smem_size) {
      complain("out-of-bounds", pc, write ? "write" : "read", name_dyn(p));
      abort_launch();
    }
    const size_t off = size_t(p - dyn_smem);
    shared_access(C.dyn_cells, off, n, write, atomic, pc, name_dyn, p);
    return;
  }
  if (p >= C.img.lo && p < C.img.hi) {
    auto it = std::upper_bound(C.shared.begin(), C.shared.end(), p,
                               [](const char* q, const Symbol& s) { return q < s.lo; });
    if (it != C.shared.begin() && p < (--it)->hi) {
      if (p + n > it->hi) {
        complain("out-of-bounds", pc, write ? "write" : "read", name_static(p));
        abort_launch();
      }
      shared_access(C.shared_cells[size_t(it - C.shared.begin())], size_t(p - it->lo), n, write,
                    atomic, pc, name_static, p);
    } else if (write) {
      complain("out-of-bounds", pc, "write", "static memory that is not a __shared__ array");
      abort_launch();
    }
    return;  // constants, threadIdx and friends
  }
  if (EmuRange e = emu_state_range(); p >= e.lo && p < e.hi) return;
  if (p >= kernel_params.lo && p < kernel_params.hi) {
    if (write) complain("host-memory", pc, "write", "kernel parameter memory");
    return;
  }
  if (is_any_fiber_stack(p)) {
    complain("foreign-stack", pc, "access", "another thread's local variable");
    return;
  }
  complain("host-memory", pc, write ? "write" : "read", "kernel code touched host memory");
}

void launch_begin(const char* k) {
  C.busy = false;
  if (!C.on) {
    C.on = true;
    C.img = image();
    for (auto& s : symbols())
      if (!s.function && s.writable) {
        C.shared.push_back(s);
        C.shared_cells.emplace_back(size_t(s.hi - s.lo) / 2 + 1);
      }
  }
  C.kernel = k;
  C.first_inst = C.inst + 1;
  C.last_alloc = nullptr;
  C.seen_pc.clear();
}
void block_begin() {
  C.busy = false;
  ++C.inst;
  C.be = 0;
  memset(C.we, 0, sizeof C.we);
  C.dyn_cells.assign(dyn_smem_size / 2 + 1, Cell{});
}
void barrier_done() { ++C.be; }
void warp_sync_done(unsigned w) { ++C.we[w]; }
void atomic_hook(const void* p, size_t n, const void* pc) { access(p, n, true, pc, true); }
void access_hook(const void* p, size_t n, bool write, const void* pc) { access(p, n, write, pc); }
struct Install {
  Install() {
    checker = {launch_begin, block_begin, barrier_done, warp_sync_done, atomic_hook, access_hook};
  }
} install;
}  // namespace
}  // namespace cudaemu

#define PC __builtin_return_address(0)
extern "C" {
#define RW(n)                                                                  \
  void __tsan_read##n(void* p) { cudaemu::access(p, n, false, PC); }           \
  void __tsan_write##n(void* p) { cudaemu::access(p, n, true, PC); }           \
  void __tsan_unaligned_read##n(void* p) { cudaemu::access(p, n, false, PC); } \
  void __tsan_unaligned_write##n(void* p) { cudaemu::access(p, n, true, PC); } \
  void __tsan_volatile_read##n(void* p) { cudaemu::access(p, n, false, PC); }  \
  void __tsan_volatile_write##n(void* p) { cudaemu::access(p, n, true, PC); }
RW(1)
RW(2)
RW(4)
RW(8)
RW(16)
#undef RW
void __tsan_read_range(void* p, size_t n) { cudaemu::access(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { cudaemu::access(p, n, true, PC); }
void* __tsan_memcpy(void* d, const void* s, size_t n) {
  cudaemu::access(s, n, false, PC);
  cudaemu::access(d, n, true, PC);
  return memcpy(d, s, n);
}
void* __tsan_memmove(void* d, const void* s, size_t n) {
  cudaemu::access(s, n, false, PC);
  cudaemu::access(d, n, true, PC);
  return memmove(d, s, n);
}
void* __tsan_memset(void* d, int v, size_t n) {
  cudaemu::access(d, n, true, PC);
  return memset(d, v, n);
}
// Atomics of host code in the same files (shared_ptr counters) and guard variables of shared
// arrays.
#define ATOMICS(bits, T)                                                                   \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, 5); } \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, 5); } \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                              \
    return __atomic_exchange_n(p, v, 5);                                                   \
  }                                                                                        \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) {                             \
    return __atomic_fetch_add(p, v, 5);                                                    \
  }                                                                                        \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) {                             \
    return __atomic_fetch_sub(p, v, 5);                                                    \
  }                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* c, T v, int, int) {  \
    return __atomic_compare_exchange_n(p, c, v, false, 5, 5);                              \
  }                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* c, T v, int, int) {    \
    return __atomic_compare_exchange_n(p, c, v, true, 5, 5);                               \
  }
ATOMICS(8, unsigned char)
ATOMICS(32, unsigned)
ATOMICS(64, unsigned long)
#undef ATOMICS
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
