// NCCL over threads and host memory. A group's sends are put on a board that all ranks see; when all have come, each copies
// what it is sent; when all have copied, they go on. Bytes that two ranks do not agree on are an error on the receiver.
#include <nccl.h>

#include <barrier>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

struct Piece {
  const void* sent;
  std::size_t bytes;
};

struct Board {
  explicit Board(int ranks) : count(ranks), all(ranks), mail(ranks, std::vector<std::deque<Piece>>(ranks)) {}
  int count;
  std::barrier<> all;
  std::vector<std::vector<std::deque<Piece>>> mail;  // [to][from], in the order of the sends
};

struct ncclComm {
  std::shared_ptr<Board> board;
  int rank;
};

namespace {

struct Receive {
  void* received;
  std::size_t bytes;
  int peer;
};

struct Pending {
  int depth = 0;
  ncclComm_t comm = nullptr;
  std::vector<Receive> receives;
};
thread_local Pending pending;

ncclResult_t flush() {
  if (pending.comm == nullptr) return ncclSuccess;
  const ncclComm_t comm = pending.comm;
  Board& board = *comm->board;
  board.all.arrive_and_wait();
  ncclResult_t result = ncclSuccess;
  for (const Receive& receive : pending.receives) {
    std::deque<Piece>& from = board.mail[comm->rank][receive.peer];
    if (from.empty() || from.front().bytes != receive.bytes) {
      result = ncclInvalidUsage;
      break;
    }
    if (receive.bytes > 0) std::memcpy(receive.received, from.front().sent, receive.bytes);
    from.pop_front();
  }
  for (std::deque<Piece>& left : board.mail[comm->rank]) {
    if (!left.empty()) result = ncclInvalidUsage;
    left.clear();
  }
  pending.comm = nullptr;
  pending.receives.clear();
  board.all.arrive_and_wait();
  return result;
}

void send(const void* sent, std::size_t bytes, int peer, ncclComm_t comm) {
  pending.comm = comm;
  comm->board->mail[peer][comm->rank].push_back({sent, bytes});
}

void receive(void* received, std::size_t bytes, int peer, ncclComm_t comm) {
  pending.comm = comm;
  pending.receives.push_back({received, bytes, peer});
}

ncclResult_t now_or_in_group() { return pending.depth > 0 ? ncclSuccess : flush(); }

}  // namespace

ncclResult_t ncclCommInitAll(ncclComm_t* comms, int count, const int*) {
  const auto board = std::make_shared<Board>(count);
  for (int rank = 0; rank < count; ++rank) comms[rank] = new ncclComm{board, rank};
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommCount(ncclComm_t comm, int* count) {
  *count = comm->board->count;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  *rank = comm->rank;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) { return result == ncclSuccess ? "no error" : "invalid usage"; }

ncclResult_t ncclAllGather(const void* sent, void* received, std::size_t count, ncclDataType_t, ncclComm_t comm,
                           cudaStream_t) {
  for (int peer = 0; peer < comm->board->count; ++peer) {
    send(sent, count, peer, comm);
    receive(static_cast<char*>(received) + peer * count, count, peer, comm);
  }
  return now_or_in_group();
}

ncclResult_t ncclSend(const void* sent, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t) {
  send(sent, count, peer, comm);
  return now_or_in_group();
}

ncclResult_t ncclRecv(void* received, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t) {
  receive(received, count, peer, comm);
  return now_or_in_group();
}

ncclResult_t ncclGroupStart() {
  ++pending.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() { return --pending.depth > 0 ? ncclSuccess : flush(); }
