// Batches made ahead by worker threads. A batch is a function of (data, options, epoch, number), so
// neither the number of workers nor their timing can change a bit of it.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "../tensor/memory.h"
#include "../tensor/runtime.h"
#include "augment.h"

namespace pupil::data {
namespace {

// p -> (p / 255 - mean) / std for every value of a byte, per channel.
struct Lookup {
  std::vector<float> table;  // 256 per channel
  explicit Lookup(const models::Preprocessing& p) : table(size_t(p.channels) * 256) {
    for (size_t c = 0; c < size_t(p.channels); c++)
      for (size_t v = 0; v < 256; v++)
        table[c * 256 + v] = (float(v) / 255.0f - p.mean[c]) / p.std[c];
  }
};

struct Network {
  models::Preprocessing input;
  Lookup lookup;
  size_t same_as;  // the first network with equal preprocessing; they share the tensor
};

bool same(const models::Preprocessing& a, const models::Preprocessing& b) {
  return a.size == b.size && a.channels == b.channels && a.mean == b.mean && a.std == b.std &&
         a.filter == b.filter && a.crop_pct == b.crop_pct;
}

void check(const models::Preprocessing& p) {
  if (p.size < 1 || p.size > 8192 || p.channels < 1 || p.channels > 4096)
    fail_input("data: a network's input of ", p.size, " pixels a side and ", p.channels,
               " channels cannot be made");
  if (!(p.crop_pct > 0 && p.crop_pct <= 1) || p.size / p.crop_pct > 8192)
    fail_input("data: a centre crop of ", p.size, " pixels that keeps a share of ", p.crop_pct,
               " cannot be made");
  if (p.mean.size() != size_t(p.channels) || p.std.size() != size_t(p.channels))
    fail_input("data: ", p.mean.size(), " means and ", p.std.size(), " standard deviations for ",
               p.channels, " channels; give one of each per channel");
  for (size_t c = 0; c < size_t(p.channels); c++)
    if (!std::isfinite(p.mean[c]) || !(p.std[c] > 0) || !std::isfinite(p.std[c]))
      fail_input("data: mean ", p.mean[c], " and standard deviation ", p.std[c], " of channel ", c,
                 " do not normalise; the standard deviation must be above 0");
}

// The pixels as planes of floats; flipped left-right on the way when asked for.
void write_planes(const Image& image, const Network& network, bool flip, const std::string& spec,
                  float* to) {
  const models::Preprocessing& p = network.input;
  if (image.channels != p.channels && image.channels != 1)
    fail_input("data: ", spec, " has images of ", image.channels, " channels, the network expects ",
               p.channels, "; only 1-channel images are repeated to more");
  size_t side = size_t(p.size), step = size_t(image.channels);
  for (size_t c = 0; c < size_t(p.channels); c++) {
    const float* table = network.lookup.table.data() + c * 256;
    const uint8_t* from = image.pixels.data() + (image.channels == 1 ? 0 : c);
    for (size_t y = 0; y < side; y++, from += side * step, to += side) {
      if (flip)
        for (size_t x = 0; x < side; x++) to[x] = table[from[(side - 1 - x) * step]];
      else
        for (size_t x = 0; x < side; x++) to[x] = table[from[x * step]];
    }
  }
}

Tensor first_rows(const Tensor& t, int64_t n) {
  Shape shape = t.shape();
  if (shape[0] == n) return t;
  shape[0] = n;
  return alias(t, shape, t.strides());
}

}  // namespace

struct Loader::State {
  Dataset set;
  LoaderOptions options;
  std::vector<Network> networks;
  std::vector<int64_t> order;  // position in `set` of the k-th sample of this epoch
  int64_t epoch = 0, batches = 0;

  // One batch being made or handed out. Slot b % slots.size() holds batch b.
  struct Slot {
    std::vector<Tensor> x;
    Tensor labels, targets, index;
    bool ready = false;
    std::exception_ptr error;
  };
  std::vector<Slot> slots;

  struct Scratch {  // of one worker; every buffer keeps its capacity
    Image decoded, cropped, resized;
    Resizer resizer;
  };

  std::mutex mutex;
  std::condition_variable work, done;
  int64_t claimed = 0, handed_out = 0;  // next batch to make, next to give to the caller
  uint64_t generation = 0;              // of start(): a worker's late batch must not count
  int busy = 0;
  bool stopping = false;
  std::vector<std::thread> threads;
  Scratch own;
  double wait = 0;

  // A batch may be made when its slot is free: the caller still holds the one before `handed_out`.
  bool may_claim() const {
    return claimed < batches && claimed < handed_out - 1 + int64_t(slots.size());
  }

  void allocate() {
    ModelScope keep;
    int64_t n = options.batch;
    for (Slot& slot : slots) {
      for (size_t k = 0; k < networks.size(); k++) {
        const models::Preprocessing& p = networks[k].input;
        if (networks[k].same_as < k) {
          slot.x.push_back(slot.x[networks[k].same_as]);
        } else if (set.values) {
          Shape shape = set.values.shape();
          shape[0] = n;
          slot.x.push_back(empty(shape));
        } else {
          slot.x.push_back(empty({n, p.channels, p.size, p.size}));
        }
      }
      slot.labels = empty({n}, DType::i64);
      slot.index = empty({n}, DType::i64);
      if (options.augment.mixup > 0 || options.augment.cutmix > 0)
        slot.targets = empty({n, set.classes});
    }
  }

  int64_t samples_of(int64_t batch) const {
    return std::min<int64_t>(options.batch, int64_t(order.size()) - batch * options.batch);
  }

  void make(int64_t batch, Slot& slot, Scratch& scratch) {
    int64_t n = samples_of(batch);
    for (int64_t k = 0; k < n; k++) {
      int64_t i = order[size_t(batch * options.batch + k)], row = set.rows[size_t(i)];
      slot.labels.data<int64_t>()[k] = set.labels[size_t(i)];
      slot.index.data<int64_t>()[k] = row;
      if (set.values) {
        int64_t width = set.values.numel() / set.values.dim(0);
        std::copy_n(set.values.data<float>() + i * width, width,
                    slot.x[0].data<float>() + k * width);
        continue;
      }
      set.image(i, scratch.decoded);
      const Image* source = &scratch.decoded;
      View view = draw_view(options.augment, options.seed,
                            options.augment.views ? epoch % options.augment.views : epoch, row,
                            source->height, source->width);
      if (options.augment.crop_padding) {
        crop(*source, {view.shift_y, view.shift_x, source->height, source->width}, {0},
             scratch.cropped);
        source = &scratch.cropped;
      }
      for (size_t j = 0; j < networks.size(); j++) {
        if (networks[j].same_as < j) continue;
        const models::Preprocessing& p = networks[j].input;
        const Image& fitted =
            scratch.resizer.fit(*source, view.box ? &*view.box : nullptr, p, scratch.resized);
        int64_t per_sample = int64_t(p.channels) * p.size * p.size;
        write_planes(fitted, networks[j], view.flip, set.spec,
                     slot.x[j].data<float>() + k * per_sample);
      }
    }
    if (slot.targets) {
      std::vector<int64_t> partner(static_cast<size_t>(n));  // as in timm
      for (int64_t k = 0; k < n; k++) partner[size_t(k)] = n - 1 - k;
      apply_mix(draw_mix(options.augment, options.seed, epoch, batch), partner, slot.labels, slot.x,
                slot.targets);
    }
  }

  void work_loop() {
    unpin_this_thread();
    Scratch scratch;
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return stopping || may_claim(); });
      if (stopping) return;
      int64_t batch = claimed++;
      Slot& slot = slots[size_t(batch) % slots.size()];
      uint64_t mine = generation;
      busy++;
      lock.unlock();
      std::exception_ptr error;
      try {
        make(batch, slot, scratch);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      busy--;
      if (mine == generation) {
        slot.ready = true;
        slot.error = error;
      }
      done.notify_all();
    }
  }
};

Loader::Loader(const Dataset& set, std::vector<models::Preprocessing> inputs, LoaderOptions options)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.set = set;
  s.options = options;
  if (options.batch < 1)
    fail_input("data: a batch of ", options.batch, " samples; give at least 1");
  if (options.workers < 0 || options.workers > 256)
    fail_input("data: ", options.workers, " loader threads; give 0 to 256");
  PUPIL_CHECK(set.size() > 0, "Loader: ", set.spec, " is empty");
  PUPIL_CHECK(!inputs.empty(), "Loader: no network's preprocessing was given");
  if (options.drop_last && options.batch > set.size())
    fail_input("data: a batch of ", options.batch, " is larger than the ", set.size(),
               " samples of ", set.spec, "; choose a smaller batch");
  s.options.batch = std::min(options.batch, set.size());
  check_augmentation(options.augment, set);
  for (size_t k = 0; k < inputs.size(); k++) {
    if (!set.values) check(inputs[k]);
    size_t first = 0;
    while (first < k && !set.values && !same(inputs[first], inputs[k])) first++;
    s.networks.push_back(
        {inputs[k], Lookup(set.values ? models::Preprocessing{} : inputs[k]), first});
  }
  s.batches = options.drop_last ? set.size() / s.options.batch
                                : (set.size() + s.options.batch - 1) / s.options.batch;
  // Each worker makes one batch while the caller uses one and one more lies ready.
  s.slots.resize(options.workers ? size_t(options.workers) + 2 : 1);
  s.allocate();
  start(0);
  for (int k = 0; k < options.workers; k++) s.threads.emplace_back([&s] { s.work_loop(); });
}

Loader::~Loader() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->work.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int64_t Loader::batches() const { return state_->batches; }

void Loader::start(int64_t epoch, int64_t first) {
  State& s = *state_;
  PUPIL_CHECK(first >= 0 && first <= s.batches, "Loader: start at batch ", first, " of ",
              s.batches);
  std::unique_lock lock(s.mutex);
  s.claimed = s.batches;  // nobody takes up more of the old epoch
  s.generation++;
  s.done.wait(lock, [&] { return s.busy == 0; });
  s.epoch = epoch;
  s.order =
      epoch_order(s.set.size(), s.options.shuffle, s.options.seed, s.options.frozen ? 0 : epoch);
  for (State::Slot& slot : s.slots) slot.ready = false;
  s.claimed = s.handed_out = first;
  s.wait = 0;
  s.work.notify_all();
}

bool Loader::next(Batch& batch) {
  State& s = *state_;
  auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(s.mutex);
  if (s.handed_out >= s.batches) return false;
  int64_t number = s.handed_out++;
  State::Slot& slot = s.slots[size_t(number) % s.slots.size()];
  if (s.threads.empty()) {
    s.make(number, slot, s.own);
  } else {
    s.work.notify_all();  // the slot of the batch before is free now
    s.done.wait(lock, [&] { return slot.ready; });
    slot.ready = false;  // for the next batch in this slot
    if (slot.error) std::rethrow_exception(slot.error);
  }
  s.wait += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  int64_t n = s.samples_of(number);
  batch.x.clear();
  for (const Tensor& x : slot.x) batch.x.push_back(first_rows(x, n));
  batch.labels = first_rows(slot.labels, n);
  batch.index = first_rows(slot.index, n);
  batch.targets = slot.targets ? first_rows(slot.targets, n) : Tensor();
  return true;
}

double Loader::wait_seconds() const { return state_->wait; }

}  // namespace pupil::data
