#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>
#include <unordered_map>

#include "launch.h"

namespace pupil {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kRedzone = 256;
constexpr unsigned char kRedzoneByte = 0xa5;

bool g_poison = false, g_redzones = false;
const bool g_direct = [] {
  const char* v = std::getenv("PUPIL_DIRECT_ALLOC");
  return v && *v == '1';
}();
thread_local bool g_in_step = false;

double mebibytes(size_t bytes) { return double(bytes) / (1 << 20); }

}  // namespace

void set_poison(bool on) { g_poison = on; }
void set_redzones(bool on) { g_redzones = on; }

struct Arena::State {
  struct Block {
    size_t bytes = 0;  // what the caller asked for
    size_t size = 0;   // what it occupies
    bool redzone = false;
    Shape shape;
    DType dtype = DType::u8;
    const char* op = "";
  };
  Device device;
  const char* name;
  mutable std::mutex mutex;
  char* base = nullptr;
  size_t range = 0;
  size_t limit = SIZE_MAX;
  std::map<size_t, size_t> free_by_offset;
  std::set<std::pair<size_t, size_t>> free_by_size;  // (size, offset): best fit is lower_bound
  std::unordered_map<void*, Block> live;
  MemoryStats stats;
  uint64_t trace = 0;

  // Address space only; pages become real when they are first touched. Huge pages are asked for:
  // the first touch of 4 KiB pages was measured three times slower.
  void reserve() {
    range = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) * 2;
    for (; range >= (size_t(1) << 28); range /= 2) {
      void* p = mmap(nullptr, range, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p != MAP_FAILED) {
        base = static_cast<char*>(p);
        // Advice: where it is refused the arena works with small pages.
        if (madvise(p, range, MADV_HUGEPAGE) != 0) errno = 0;
        return;
      }
    }
    fail(__FILE__, __LINE__, "mmap", name, " arena: no address space");
  }

  void note(size_t offset, size_t size) {
    trace = (trace ^ offset) * 1099511628211u;
    trace = (trace ^ size) * 1099511628211u;
  }

  std::string table(int count) const {
    std::vector<const Block*> blocks;
    for (auto& [p, block] : live) blocks.push_back(&block);
    std::sort(blocks.begin(), blocks.end(), [](auto a, auto b) { return a->bytes > b->bytes; });
    std::ostringstream out;
    for (int i = 0; i < count && i < int(blocks.size()); i++)
      out << "\n  " << mebibytes(blocks[size_t(i)]->bytes) << " MiB  " << blocks[size_t(i)]->shape
          << " " << name_of(blocks[size_t(i)]->dtype) << "  " << blocks[size_t(i)]->op;
    return out.str();
  }

  void* take(size_t size) {
    auto it = free_by_size.lower_bound({size, 0});
    size_t offset;
    if (it != free_by_size.end()) {
      auto [hole, at] = *it;
      offset = at;
      free_by_size.erase(it);
      free_by_offset.erase(at);
      if (hole > size) add_free(at + size, hole - size);
    } else {
      offset = stats.reserved;
      size_t extra = size;  // the last hole may touch the end: grow it instead of leaving it
      auto last = free_by_offset.empty() ? free_by_offset.end() : std::prev(free_by_offset.end());
      bool grow = last != free_by_offset.end() && last->first + last->second == stats.reserved;
      if (grow) {
        offset = last->first;
        extra = size - last->second;
      }
      if (!base) reserve();
      PUPIL_CHECK(stats.reserved + extra <= range, name, " arena: out of memory at ",
                  mebibytes(stats.reserved), " MiB; the largest tensors:", table(10));
      if (grow) {
        free_by_size.erase({last->second, last->first});
        free_by_offset.erase(last);
      }
      stats.reserved += extra;
    }
    note(offset, size);
    return base + offset;
  }

  void add_free(size_t offset, size_t size) {
    free_by_offset[offset] = size;
    free_by_size.insert({size, offset});
  }

  void give(void* p, size_t size) {
    size_t offset = size_t(static_cast<char*>(p) - base);
    note(offset, ~size);
    auto next = free_by_offset.lower_bound(offset);
    if (next != free_by_offset.end() && next->first == offset + size) {
      size += next->second;
      free_by_size.erase({next->second, next->first});
      next = free_by_offset.erase(next);
    }
    if (next != free_by_offset.begin()) {
      auto previous = std::prev(next);
      if (previous->first + previous->second == offset) {
        offset = previous->first;
        size += previous->second;
        free_by_size.erase({previous->second, previous->first});
        free_by_offset.erase(previous);
      }
    }
    add_free(offset, size);
  }
};

Arena::Arena(Device device, const char* name) : state_(new State) {
  state_->device = device;
  state_->name = name;
}

// Arenas are never destroyed: tensors in static variables may outlive any order of destruction.
Arena& Arena::step(Device device) {
  static Arena& cpu = *new Arena({}, "step");
  static Arena& cuda = *new Arena({DeviceKind::cuda}, "cuda step");
  return device.is_cuda() ? cuda : cpu;
}
Arena& Arena::model(Device device) {
  static Arena& cpu = *new Arena({}, "model");
  static Arena& cuda = *new Arena({DeviceKind::cuda}, "cuda model");
  return device.is_cuda() ? cuda : cpu;
}
Arena& Arena::current(Device device) { return g_in_step ? step(device) : model(device); }

void* Arena::get(size_t bytes) {
  State& s = *state_;
  std::lock_guard lock(s.mutex);
  bool redzone = g_redzones && !s.device.is_cuda();
  size_t size =
      (std::max<size_t>(bytes, 1) + (redzone ? kRedzone : 0) + kAlign - 1) & ~(kAlign - 1);
  PUPIL_CHECK(s.stats.live + bytes <= s.limit, s.name, " arena: limit of ", mebibytes(s.limit),
              " MiB reached; the largest tensors:", s.table(10));
  void* p = nullptr;
#if PUPIL_CUDA
  if (s.device.is_cuda()) {
    cudaError_t e = cudaMallocAsync(&p, std::max<size_t>(bytes, 1), cuda_stream());
    PUPIL_CHECK(e == cudaSuccess, s.name, " arena: ", cudaGetErrorName(e), " for ", bytes,
                " bytes; the largest tensors:", s.table(10));
  } else
#endif
  {
    PUPIL_CHECK(!s.device.is_cuda(), "this program was built without CUDA");
    p = g_direct ? std::aligned_alloc(kAlign, size) : s.take(size);
    PUPIL_CHECK(p, s.name, " arena: out of memory; the largest tensors:", s.table(10));
    if (g_poison) memset(p, 0xff, bytes);
    if (redzone) memset(static_cast<char*>(p) + bytes, kRedzoneByte, size - bytes);
  }
  s.live[p] = {bytes, size, redzone, {}, DType::u8, ""};
  s.stats.live += bytes;
  s.stats.peak = std::max(s.stats.peak, s.stats.live);
  s.stats.allocations++;
  return p;
}

void Arena::put(void* p, size_t bytes) noexcept {
  State& s = *state_;
  std::lock_guard lock(s.mutex);
  auto it = s.live.find(p);
  if (it == s.live.end()) std::abort();
  State::Block block = it->second;
  s.live.erase(it);
  s.stats.live -= bytes;
#if PUPIL_CUDA
  if (s.device.is_cuda()) {
    // A destructor must not throw; an error here shows again at the next launch.
    if (cudaFreeAsync(p, cuda_stream()) != cudaSuccess) return;
    return;
  }
#endif
  if (block.redzone) {
    const unsigned char* guard = static_cast<unsigned char*>(p) + bytes;
    for (size_t i = 0; i < block.size - bytes; i++)
      if (guard[i] != kRedzoneByte) {
        fprintf(stderr, "pupil: %s wrote beyond its tensor of %zu bytes\n", block.op, bytes);
        std::abort();
      }
  }
  if (g_direct)
    std::free(p);
  else
    s.give(p, block.size);
}

void Arena::label(void* p, const Shape& shape, DType dtype, const char* op) {
  std::lock_guard lock(state_->mutex);
  auto it = state_->live.find(p);
  if (it == state_->live.end()) return;  // a view that does not start at its block
  if (!*op) {
    it->second.shape = shape;
    it->second.dtype = dtype;
  } else if (it->second.shape == shape) {  // not a view of it: the block keeps its maker's name
    it->second.op = op;
  }
}

MemoryStats Arena::stats() const {
  std::lock_guard lock(state_->mutex);
  return state_->stats;
}
uint64_t Arena::trace() const {
  std::lock_guard lock(state_->mutex);
  return state_->trace;
}
void Arena::set_limit(size_t bytes) {
  std::lock_guard lock(state_->mutex);
  state_->limit = bytes;
}
std::string Arena::largest(int count) const {
  std::lock_guard lock(state_->mutex);
  return state_->table(count);
}
void Arena::begin_step() {
  std::lock_guard lock(state_->mutex);
  state_->trace = 1469598103934665603u;
}

StepScope::StepScope(Device device) : device_(device), outer_(g_in_step) {
  PUPIL_CHECK(!outer_, "StepScope: a step is already open");
  g_in_step = true;
  Arena::step(device_).begin_step();
}
StepScope::~StepScope() noexcept(false) {
  g_in_step = outer_;
  if (std::uncaught_exceptions() > 0) return;
  Arena& arena = Arena::step(device_);
  PUPIL_CHECK(arena.stats().live == 0,
              "these tensors outlive their training step:", arena.largest(20));
}

ModelScope::ModelScope() : outer_(g_in_step) { g_in_step = false; }
ModelScope::~ModelScope() { g_in_step = outer_; }

Storage::~Storage() {
  if (arena) arena->put(data, bytes);
}

}  // namespace pupil
