#include "pickle.h"

#include <charconv>

#include "file.h"

namespace pupil::data {

using Value = PickleValue;

namespace {

// Opcodes of one byte push or remember values of many. The largest checkpoints stay far below this
// number of values on the stack, in the memo and of containers; a hostile file does not.
constexpr size_t kMost = size_t(1) << 20;

}  // namespace

// The state of one pickle: its bytes, stack, marks and memo.
struct Pickle::Reader {
  Pickle& pickle;
  std::string_view whole, rest;
  std::vector<Value> stack;
  std::vector<size_t> marks;                 // heights of the stack
  std::unordered_map<uint64_t, Value> memo;  // slots are any number that the file likes

  [[noreturn]] void bad(const std::string& what) {
    pickle.refuse(concat(what, " (byte ", whole.size() - rest.size(), " of the pickle)"));
  }

  std::string_view take(uint64_t n) {
    if (n > rest.size()) bad("the pickle ends too early");
    std::string_view out = rest.substr(0, n);
    rest.remove_prefix(n);
    return out;
  }
  template <class T>
  T number() {  // little-endian
    T value;
    memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view line() {
    size_t end = rest.find('\n');
    if (end == rest.npos) bad("the pickle ends too early");
    std::string_view out = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    return out;
  }
  uint64_t slot() {
    std::string_view digits = line();
    uint64_t value = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) bad("a bad memo number");
    return value;
  }

  void push(Value v) {
    if (stack.size() >= kMost || pickle.containers_.size() > kMost)
      bad("more values than plain data needs");
    stack.push_back(v);
  }
  size_t floor() const { return marks.empty() ? 0 : marks.back(); }
  Value pop() {
    if (stack.size() <= floor()) bad("takes a value from an empty stack");
    Value v = stack.back();
    stack.pop_back();
    return v;
  }
  Value& top() {
    if (stack.size() <= floor()) bad("needs a value on an empty stack");
    return stack.back();
  }
  std::vector<Value> pop_to_mark() {
    if (marks.empty()) bad("a mark is missing");
    std::vector<Value> out(stack.begin() + int64_t(marks.back()), stack.end());
    stack.resize(marks.back());
    marks.pop_back();
    return out;
  }
  std::vector<Value> pop_some(size_t n) {
    std::vector<Value> out(n);
    while (n) out[--n] = pop();
    return out;
  }
  std::vector<Value>& items_of_top(Value::Kind kind, const char* name) {
    if (!top().is(kind)) bad(concat("adds items to something that is no ", name));
    return pickle.containers_[size_t(top().number)];
  }
  void add_items(Value::Kind kind, const char* name, const std::vector<Value>& more) {
    std::vector<Value>& items = items_of_top(kind, name);
    if (kind == Value::dict && more.size() % 2) bad("a key without a value");
    items.insert(items.end(), more.begin(), more.end());
  }

  void push_text(uint64_t n) {
    if (n > UINT32_MAX) bad("a text longer than 4 GiB");
    std::string_view bytes = take(n);
    Value v;
    v.kind = Value::text;
    v.length = uint32_t(bytes.size());
    v.data = bytes.data();
    push(v);
  }
  void push_long(std::string_view bytes) {  // two's complement of any length, low byte first
    int64_t value = 0;
    if (bytes.size() > 8) return push(Value::of(Value::big_integer, 0));
    if (!bytes.empty()) value = (bytes.back() & 0x80) ? -1 : 0;
    memcpy(&value, bytes.data(), bytes.size());
    push(Value::of(Value::integer, value));
  }
  void push_decimal(std::string_view digits) {  // I01 and I00 are the booleans of protocol 0 and 1
    if (digits == "01" || digits == "00") return push(Value::of(Value::boolean, digits == "01"));
    if (digits.ends_with('L')) digits.remove_suffix(1);
    int64_t value = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) bad("a bad number");
    push(Value::of(Value::integer, value));
  }

  void push_global(std::string_view module, std::string_view name) {
    std::string full = concat(module, ".", name);
    std::optional<int64_t> number = pickle.rules_.global(full);
    if (!number)
      pickle.refuse(concat("it asks for ", printable(full),
                           ", which such a file does not need; nothing was run. ",
                           pickle.rules_.advice));
    push(Value::of(Value::global, *number));
  }
  void call() {
    Value args = pop(), function = pop();
    if (!function.is(Value::global)) bad("calls something that is no function");
    if (!args.is(Value::tuple)) bad("calls a function without a tuple of arguments");
    push(pickle.rules_.call(pickle, function.number, pickle.items(args)));
  }
  void build() {
    Value state = pop();
    if (top().is(Value::dict)) return;  // attributes of an OrderedDict, _metadata for example
    if (!pickle.rules_.build) bad("sets the state of an object");
    pickle.rules_.build(pickle, top(), state);
  }
  void remember(uint64_t slot) {
    if (memo.size() >= kMost) bad("remembers more values than plain data needs");
    memo[slot] = top();
  }
  void get(uint64_t slot) {
    auto found = memo.find(slot);
    if (found == memo.end()) bad(concat("reads memo slot ", slot, ", which was never written"));
    push(found->second);
  }

  Value run();
};

// Opcodes: Lib/pickletools.py of Python. Missing are those that build objects of classes in other
// ways, extension codes, out-of-band buffers and sets.
Value Pickle::Reader::run() {
  for (;;) {
    uint8_t op = number<uint8_t>();
    switch (op) {
      case 0x80:  // PROTO
        if (number<uint8_t>() > 5) bad("an unknown pickle protocol");
        break;
      case 0x95:  // FRAME
        if (number<uint64_t>() > rest.size()) bad("the pickle ends too early");
        break;
      case '.': {
        Value result = pop();
        if (!stack.empty() || !marks.empty()) bad("stops with values left on the stack");
        return result;
      }
      case '(':
        if (marks.size() >= kMost) bad("more marks than plain data needs");
        marks.push_back(stack.size());
        break;
      case '0':
        pop();
        break;
      case '1':
        pop_to_mark();
        break;
      case '2':
        push(Value(top()));
        break;
      case 'N':
        push({});
        break;
      case 0x88:
      case 0x89:
        push(Value::of(Value::boolean, op == 0x88));
        break;
      case 'J':
        push(Value::of(Value::integer, number<int32_t>()));
        break;
      case 'K':
        push(Value::of(Value::integer, number<uint8_t>()));
        break;
      case 'M':
        push(Value::of(Value::integer, number<uint16_t>()));
        break;
      case 'I':
      case 'L':
        push_decimal(line());
        break;
      case 0x8a:
        push_long(take(number<uint8_t>()));
        break;
      case 0x8b:
        push_long(take(number<uint32_t>()));
        break;
      case 'G': {
        Value v;
        v.kind = Value::real;
        uint64_t bits = __builtin_bswap64(number<uint64_t>());
        memcpy(&v.value, &bits, 8);
        push(v);
        break;
      }
      case 'U':   // SHORT_BINSTRING
      case 'C':   // SHORT_BINBYTES
      case 0x8c:  // SHORT_BINUNICODE
        push_text(number<uint8_t>());
        break;
      case 'T':  // BINSTRING
      case 'B':  // BINBYTES
      case 'X':  // BINUNICODE
        push_text(number<uint32_t>());
        break;
      case 0x8d:  // BINUNICODE8
      case 0x8e:  // BINBYTES8
        push_text(number<uint64_t>());
        break;
      case ')':
        push(pickle.make(Value::tuple));
        break;
      case ']':
        push(pickle.make(Value::list));
        break;
      case '}':
        push(pickle.make(Value::dict));
        break;
      case 't':
        push(pickle.make(Value::tuple, pop_to_mark()));
        break;
      case 0x85:
      case 0x86:
      case 0x87:
        push(pickle.make(Value::tuple, pop_some(op - 0x84u)));
        break;
      case 'l':
        push(pickle.make(Value::list, pop_to_mark()));
        break;
      case 'd': {
        std::vector<Value> items = pop_to_mark();
        push(pickle.make(Value::dict));
        add_items(Value::dict, "dict", items);
        break;
      }
      case 'a': {
        Value item = pop();
        items_of_top(Value::list, "list").push_back(item);
        break;
      }
      case 'e': {
        std::vector<Value> items = pop_to_mark();
        add_items(Value::list, "list", items);
        break;
      }
      case 's': {
        std::vector<Value> items = pop_some(2);
        add_items(Value::dict, "dict", items);
        break;
      }
      case 'u': {
        std::vector<Value> items = pop_to_mark();
        add_items(Value::dict, "dict", items);
        break;
      }
      case 'c':
      case 'i': {  // GLOBAL; INST calls it as well, which no allowed one needs
        std::string_view module = line(), name = line();
        push_global(module, name);
        if (op == 'i') bad("an instance by opcode INST");
        break;
      }
      case 0x93: {
        Value name = pop(), module = pop();
        if (!name.is(Value::text) || !module.is(Value::text)) bad("a global without a name");
        push_global(module.view(), name.view());
        break;
      }
      case 'R':
      case 0x81:  // NEWOBJ
        call();
        break;
      case 'b':
        build();
        break;
      case 'Q': {
        Value id = pop();
        if (!pickle.rules_.persistent) bad("refers to something outside the pickle");
        push(pickle.rules_.persistent(pickle, id));
        break;
      }
      case 'q':
        remember(number<uint8_t>());
        break;
      case 'r':
        remember(number<uint32_t>());
        break;
      case 'p':
        remember(slot());
        break;
      case 0x94:
        remember(memo.size());
        break;
      case 'h':
        get(number<uint8_t>());
        break;
      case 'j':
        get(number<uint32_t>());
        break;
      case 'g':
        get(slot());
        break;
      default:
        bad(concat("opcode ", int(op), " is not used by plain data"));
    }
  }
}

Value Pickle::read(std::string_view& bytes) {
  Reader reader{*this, bytes, bytes, {}, {}, {}};
  Value result = reader.run();
  bytes = reader.rest;
  return result;
}

const Value* Pickle::find(Value dict, std::string_view key) const {
  const std::vector<Value>& all = items(dict);
  for (size_t i = all.size(); i >= 2; i -= 2)
    if (all[i - 2].is(Value::text) && all[i - 2].view() == key) return &all[i - 1];
  return nullptr;
}

Value Pickle::make(Value::Kind kind, std::vector<Value> items) {
  containers_.push_back(std::move(items));
  return Value::of(kind, int64_t(containers_.size() - 1));
}

void Pickle::refuse(const std::string& message) const { fail_input(where_, message); }

}  // namespace pupil::data
