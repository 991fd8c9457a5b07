// A machine for Python's pickle language that cannot run anything: globals are only those that the
// caller names, calls are answered by the caller's own code, and nothing is ever imported. All
// damage is answered with an InputError; the memory it can claim is bounded.
#pragma once
#include <deque>
#include <unordered_map>

#include "../tensor/core.h"

namespace pupil::data {

// 16 bytes; containers live in the Pickle, text in the bytes that were read.
struct PickleValue {
  enum Kind : uint8_t {
    none,
    boolean,
    integer,
    big_integer,  // does not fit into 64 bits; its value is dropped
    real,
    text,    // str and bytes
    tuple,   // items: Pickle::items
    list,    // items
    dict,    // items: key, value, key, value, ...
    global,  // number: what rules.global answered
    object,  // number: made by rules.call or rules.persistent
  };
  Kind kind = none;
  uint32_t length = 0;
  union {
    int64_t number = 0;
    double value;
    const char* data;
  };

  bool is(Kind k) const { return kind == k; }
  std::string_view view() const { return {data, length}; }  // text
  static PickleValue of(Kind kind, int64_t number) {
    PickleValue v;
    v.kind = kind;
    v.number = number;
    return v;
  }
};

class Pickle {
 public:
  // What a container allows. Each may throw InputError; an unset build or persistent refuses.
  struct Rules {
    // A number for an allowed global, nothing for any other; `name` is "module.name".
    std::function<std::optional<int64_t>(std::string_view name)> global;
    // REDUCE and NEWOBJ: the allowed global `number` called with args.
    std::function<PickleValue(Pickle&, int64_t number, std::span<const PickleValue> args)> call;
    // BUILD: gives `state` to a value (dicts ignore it without asking).
    std::function<void(Pickle&, PickleValue object, PickleValue state)> build;
    std::function<PickleValue(Pickle&, PickleValue id)> persistent;
    std::string advice;  // what to do instead, behind the refusal of a global
  };

  // where: begins every message ("weights: a.pth: ").
  Pickle(Rules rules, std::string where) : rules_(std::move(rules)), where_(std::move(where)) {}

  // Reads one pickle from the front of `bytes`, removes it there and gives its value. May be called
  // again for the next; the values of all stay valid while this object and the bytes live.
  PickleValue read(std::string_view& bytes);

  const std::vector<PickleValue>& items(PickleValue v) const {
    return containers_[size_t(v.number)];
  }
  // The value of a text key in a dict, the last if there are several; nullptr if there is none.
  const PickleValue* find(PickleValue dict, std::string_view key) const;
  PickleValue make(PickleValue::Kind kind, std::vector<PickleValue> items = {});
  [[noreturn]] void refuse(const std::string& message) const;

 private:
  struct Reader;
  Rules rules_;
  std::string where_;
  std::deque<std::vector<PickleValue>> containers_;
};

}  // namespace pupil::data
