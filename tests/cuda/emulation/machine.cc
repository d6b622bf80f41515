#include "machine.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

// Saves the callee's registers and the stack pointer, and goes on with another stack.
extern "C" void openmsa_switch_stack(void** from, void* to);
asm(R"(
.text
.globl openmsa_switch_stack
.type openmsa_switch_stack, @function
openmsa_switch_stack:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size openmsa_switch_stack, .-openmsa_switch_stack
)");

namespace openmsa::emulation {

namespace {

constexpr std::size_t kStackBytes = 256 << 10, kFenceBytes = 1024;
constexpr int kPoison = 0xff;  // NaN in every float type

struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;
};

struct Fiber {
  std::unique_ptr<char, void (*)(char*)> stack{
      static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
      [](char* memory) { munmap(memory, kStackBytes); }};
  void* stack_pointer;
  int number;
  std::vector<Copy> copies;
  std::vector<std::size_t> groups;  // ends of those among the copies
};

/// Threads that wait for each other.
struct Meeting {
  std::size_t expected = 0;
  std::vector<Fiber*> waiting;
  const char* what = nullptr;
  Together together = nullptr;
  void* lanes[kWarpLanes] = {};
  bool any = false, result = false;
};

struct Machine {
  std::mutex mutex;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Meeting> warps;
  Meeting cta;
  std::deque<Fiber*> ready;
  Fiber* running = nullptr;
  void* host = nullptr;  // stack pointer of run_grid
  const std::function<void()>* body = nullptr;
  bool is_reversed = false;  // this CTA begins with its last thread
  std::string failure;
};
Machine machine;

std::vector<char* (*)()>& dynamic_shared() {
  static std::vector<char* (*)()> arrays;
  return arrays;
}

void to_host(void** from) { openmsa_switch_stack(from, machine.host); }

/// Goes on with a thread that can.
void run_next(void** from) {
  if (machine.ready.empty()) {
    if (machine.cta.expected > 0) {
      machine.failure = "threads wait for ever: " + std::to_string(machine.cta.waiting.size()) + " for the CTA";
      for (std::size_t w = 0; w < machine.warps.size(); ++w) {
        const Meeting& warp = machine.warps[w];
        if (warp.waiting.empty()) continue;
        machine.failure +=
            ", " + std::to_string(warp.waiting.size()) + " of warp " + std::to_string(w) + " in " + warp.what;
      }
    }
    return to_host(from);
  }
  machine.running = machine.ready.front();
  machine.ready.pop_front();
  threadIdx.x = static_cast<unsigned int>(machine.running->number);
  openmsa_switch_stack(from, machine.running->stack_pointer);
}

/// Nobody is missing any more: those who waited go on, before all others.
void end_meeting(Meeting& meeting) {
  if (meeting.together != nullptr) meeting.together(meeting.lanes);
  std::memset(meeting.lanes, 0, sizeof(meeting.lanes));
  meeting.result = meeting.any;
  meeting.any = false;
  auto& ready = machine.ready;
  if (machine.is_reversed) {
    ready.insert(ready.begin(), meeting.waiting.begin(), meeting.waiting.end());
  } else {
    for (Fiber* fiber : meeting.waiting) ready.push_front(fiber);
  }
  meeting.waiting.clear();
}

/// The running thread has come.
void wait_for_others(Meeting& meeting) {
  if (meeting.waiting.size() + 1 == meeting.expected) {
    end_meeting(meeting);
  } else {
    meeting.waiting.push_back(machine.running);
    run_next(&machine.running->stack_pointer);
  }
}

void leave(Meeting& meeting) {
  --meeting.expected;
  if (meeting.expected > 0 && meeting.waiting.size() == meeting.expected) end_meeting(meeting);
}

Meeting& warp_of(const Fiber& fiber) { return machine.warps[static_cast<std::size_t>(fiber.number / kWarpLanes)]; }

/// The first function on a thread's stack.
void run_thread() {
  (*machine.body)();
  Fiber& fiber = *machine.running;
  leave(warp_of(fiber));
  leave(machine.cta);
  run_next(&fiber.stack_pointer);
  __builtin_unreachable();
}

void prepare(Fiber& fiber, int number) {
  fiber.number = number;
  fiber.copies.clear();
  fiber.groups.clear();
  auto** const top = reinterpret_cast<void**>(fiber.stack.get() + kStackBytes);
  constexpr int kSaved = 6;
  void** const first = top - 2;  // of a function's frame: 8 bytes off a multiple of 16 when it is entered
  *first = reinterpret_cast<void*>(&run_thread);
  std::memset(first - kSaved, 0, kSaved * sizeof(void*));
  fiber.stack_pointer = first - kSaved;
}

void run_cta(unsigned int threads, std::size_t shared_bytes) {
  for (const auto array : dynamic_shared()) std::memset(array(), kPoison, shared_bytes + kFenceBytes);
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  machine.warps.assign((threads + kWarpLanes - 1) / kWarpLanes, {});
  machine.cta = {};
  machine.cta.expected = threads;
  machine.ready.clear();
  for (unsigned int i = 0; i < threads; ++i) {
    const unsigned int number = machine.is_reversed ? threads - 1 - i : i;
    Fiber& fiber = *machine.fibers[number];
    prepare(fiber, static_cast<int>(number));
    ++warp_of(fiber).expected;
    machine.ready.push_back(&fiber);
  }
  run_next(&machine.host);
  machine.running = nullptr;
  if (!machine.failure.empty()) throw std::runtime_error(std::exchange(machine.failure, ""));
  for (const auto array : dynamic_shared()) {
    for (std::size_t i = 0; i < kFenceBytes; ++i) {
      if (array()[shared_bytes + i] != static_cast<char>(kPoison))
        throw std::runtime_error("written past shared memory");
    }
  }
}

}  // namespace

DynamicShared::DynamicShared(char* (*memory)()) { dynamic_shared().push_back(memory); }

void run_grid(Index ctas, unsigned int threads, std::size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard lock(machine.mutex);
  if (shared_bytes > kSharedBytes) throw std::runtime_error("more shared memory than a CTA may have");
  if (threads > 1024) throw std::runtime_error("more threads than a CTA may have");
  machine.body = &body;
  blockDim = {threads, 1, 1};
  gridDim = ctas;
  for (unsigned int z = 0; z < ctas.z; ++z) {
    for (unsigned int y = 0; y < ctas.y; ++y) {
      for (unsigned int x = 0; x < ctas.x; ++x) {
        blockIdx = {x, y, z};
        run_cta(threads, shared_bytes);
        machine.is_reversed = !machine.is_reversed;
      }
    }
  }
}

void fail(const std::string& why) {
  machine.failure = why;
  void* lost = nullptr;
  to_host(&lost);
  __builtin_unreachable();
}

void meet_warp(const char* what, void* mine, Together together) {
  Fiber& fiber = *machine.running;
  Meeting& warp = warp_of(fiber);
  if (!warp.waiting.empty() && std::strcmp(warp.what, what) != 0) {
    fail(std::string("lanes of a warp meet in ") + warp.what + " and in " + what);
  }
  warp.what = what;
  warp.together = together;
  warp.lanes[fiber.number % kWarpLanes] = mine;
  wait_for_others(warp);
}

bool meet_cta(bool mine) {
  machine.cta.any |= mine;
  wait_for_others(machine.cta);
  return machine.cta.result;
}

void start_copy(std::uint32_t shared, const void* global, std::size_t bytes, bool exists) {
  void* const to = shared_pointer(shared);
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 || reinterpret_cast<std::uintptr_t>(global) % bytes != 0) {
    fail("a copy is not aligned to its size");
  }
  std::memset(to, kPoison, bytes);
  machine.running->copies.push_back({to, exists ? global : nullptr, bytes});
}

void close_copies() { machine.running->groups.push_back(machine.running->copies.size()); }

void wait_for_copies(std::size_t groups_left) {
  Fiber& fiber = *machine.running;
  if (fiber.groups.size() <= groups_left) return;
  const auto done = static_cast<std::ptrdiff_t>(fiber.groups.size() - groups_left);
  const std::size_t end = fiber.groups[static_cast<std::size_t>(done) - 1];
  for (std::size_t i = 0; i < end; ++i) {
    const Copy& copy = fiber.copies[i];
    copy.from == nullptr ? std::memset(copy.to, 0, copy.bytes) : std::memcpy(copy.to, copy.from, copy.bytes);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(end));
  fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + done);
  for (std::size_t& group : fiber.groups) group -= end;
}

std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const char*>(pointer) - dynamic_shared().front()());
}

void* shared_pointer(std::uint32_t address) { return dynamic_shared().front()() + static_cast<std::int32_t>(address); }

}  // namespace openmsa::emulation
