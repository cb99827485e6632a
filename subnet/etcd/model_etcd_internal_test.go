package etcd

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// fakeEtcd is a working model of one etcd server, as far as this package asks it for anything: keys with revisions,
// transactions, reads of the past, leases. It has no clock: who uses it says when a lease has expired, by revoking it.
// [TestTheModelOfEtcdAnswersAsEtcdDoes] holds it to the real one.
type fakeEtcd struct {
	pb.KVClient // nil: a request that is not modelled is a crash, not a wrong answer
	pb.LeaseClient

	states []contents      // by revision - 1
	leases map[int64]int64 // time to live in seconds, by lease
	last   int64           // the lease granted last
}

type contents map[string]*mvccpb.KeyValue // never changed, and its values neither

func newFakeEtcd() *fakeEtcd { return &fakeEtcd{states: []contents{{}}, leases: map[int64]int64{}} }

// copy returns what a backup keeps.
func (f *fakeEtcd) copy() *fakeEtcd {
	return &fakeEtcd{states: slices.Clone(f.states), leases: maps.Clone(f.leases), last: f.last}
}

func (f *fakeEtcd) revision() int64 { return int64(len(f.states)) }

func (f *fakeEtcd) now() contents { return f.states[len(f.states)-1] }

func (f *fakeEtcd) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.revision()} }

func (f *fakeEtcd) Range(_ context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	if r.Revision > f.revision() {
		return nil, rpctypes.ErrGRPCFutureRev
	}
	state := f.now()
	if r.Revision > 0 {
		state = f.states[r.Revision-1]
	}
	answer := look(state, r)
	answer.Header = f.header()
	return answer, nil
}

// look reads one state.
func look(state contents, r *pb.RangeRequest) *pb.RangeResponse {
	answer := &pb.RangeResponse{}
	for _, kv := range inRange(state, r.Key, r.RangeEnd) {
		answer.Count++
		if r.Limit > 0 && answer.Count > r.Limit {
			answer.More = true
			continue
		}
		answer.Kvs = append(answer.Kvs, kv)
	}
	return answer
}

// inRange returns the keys from a key on, in order: that one alone without an end, all later ones with the end "\0".
func inRange(state contents, from, end []byte) []*mvccpb.KeyValue {
	var all []*mvccpb.KeyValue
	for _, key := range slices.Sorted(maps.Keys(state)) {
		if key == string(from) || len(end) > 0 && key > string(from) && (key < string(end) || string(end) == "\x00") {
			all = append(all, state[key])
		}
	}
	return all
}

func (f *fakeEtcd) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	answer, err := f.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: r}}}})
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Header: answer.Header}, nil
}

func (f *fakeEtcd) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	answer, err := f.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}}})
	if err != nil {
		return nil, err
	}
	return &pb.DeleteRangeResponse{Header: answer.Header, Deleted: answer.Responses[0].GetResponseDeleteRange().Deleted}, nil
}

// Txn does all or nothing, as one revision.
func (f *fakeEtcd) Txn(_ context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if err := wellFormed(ops); err != nil {
			return nil, err
		}
	}
	answer := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		holds, err := f.holds(c)
		if err != nil {
			return nil, err
		}
		answer.Succeeded = answer.Succeeded && holds
	}
	ops := r.Success
	if !answer.Succeeded {
		ops = r.Failure
	}
	next, changed := maps.Clone(f.now()), false
	for _, op := range ops {
		done, writes, err := f.apply(next, op)
		if err != nil {
			return nil, err
		}
		answer.Responses = append(answer.Responses, done)
		changed = changed || writes
	}
	if changed {
		f.states = append(f.states, next)
	}
	answer.Header = f.header()
	return answer, nil
}

// wellFormed refuses what has no key, and what would write one twice in one revision.
func wellFormed(ops []*pb.RequestOp) error {
	puts := map[string]bool{}
	for _, op := range ops {
		p, r, d := op.GetRequestPut(), op.GetRequestRange(), op.GetRequestDeleteRange()
		if len(p.GetKey())+len(r.GetKey())+len(d.GetKey()) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		if p == nil {
			continue
		}
		if puts[string(p.Key)] {
			return rpctypes.ErrGRPCDuplicateKey
		}
		puts[string(p.Key)] = true
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			for key := range puts {
				if len(inRange(contents{key: nil}, d.Key, d.RangeEnd)) > 0 {
					return rpctypes.ErrGRPCDuplicateKey
				}
			}
		}
	}
	return nil
}

var errNotModelled = errors.New("the model of etcd does not know this request")

// holds decides a comparison for equality with a revision, the only kind that the package makes.
func (f *fakeEtcd) holds(c *pb.Compare) (bool, error) {
	if len(c.RangeEnd) > 0 || c.Result != pb.Compare_EQUAL {
		return false, errNotModelled
	}
	kv := f.now()[string(c.Key)]
	switch c.Target {
	case pb.Compare_MOD:
		return kv.GetModRevision() == c.GetModRevision(), nil
	case pb.Compare_CREATE:
		return kv.GetCreateRevision() == c.GetCreateRevision(), nil
	}
	return false, errNotModelled
}

// apply does one operation of a transaction on the state to be.
func (f *fakeEtcd) apply(next contents, op *pb.RequestOp) (done *pb.ResponseOp, writes bool, err error) {
	if r := op.GetRequestRange(); r != nil {
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: look(next, r)}}, false, nil
	}
	revision := f.revision() + 1
	if d := op.GetRequestDeleteRange(); d != nil {
		all := inRange(next, d.Key, d.RangeEnd)
		for _, kv := range all {
			delete(next, string(kv.Key))
		}
		deleted := &pb.DeleteRangeResponse{Deleted: int64(len(all))}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: deleted}}, len(all) > 0, nil
	}
	p := op.GetRequestPut()
	if p == nil || p.IgnoreLease || p.IgnoreValue || p.PrevKv {
		return nil, false, errNotModelled
	}
	if _, ok := f.leases[p.Lease]; p.Lease != 0 && !ok {
		return nil, false, rpctypes.ErrGRPCLeaseNotFound
	}
	old := next[string(p.Key)]
	next[string(p.Key)] = &mvccpb.KeyValue{
		Key: p.Key, Value: p.Value, Lease: p.Lease, ModRevision: revision,
		CreateRevision: cmp.Or(old.GetCreateRevision(), revision), Version: old.GetVersion() + 1,
	}
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}, true, nil
}

func (f *fakeEtcd) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest, _ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	f.last++
	f.leases[f.last] = r.TTL
	return &pb.LeaseGrantResponse{Header: f.header(), ID: f.last, TTL: r.TTL}, nil
}

// LeaseRevoke removes all keys of the lease as one revision.
func (f *fakeEtcd) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest, _ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	if _, ok := f.leases[r.ID]; !ok {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	delete(f.leases, r.ID)
	next := maps.Clone(f.now())
	maps.DeleteFunc(next, func(_ string, kv *mvccpb.KeyValue) bool { return kv.Lease == r.ID })
	if len(next) < len(f.now()) {
		f.states = append(f.states, next)
	}
	return &pb.LeaseRevokeResponse{Header: f.header()}, nil
}

func (f *fakeEtcd) LeaseLeases(context.Context, *pb.LeaseLeasesRequest, ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	answer := &pb.LeaseLeasesResponse{Header: f.header()}
	for _, id := range slices.Sorted(maps.Keys(f.leases)) {
		answer.Leases = append(answer.Leases, &pb.LeaseStatus{ID: id})
	}
	return answer, nil
}

func (f *fakeEtcd) LeaseKeepAlive(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	return &renewal{ask: func(r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
		return &pb.LeaseKeepAliveResponse{Header: f.header(), ID: r.ID, TTL: f.leases[r.ID]}, nil // 0 when there is none
	}}, nil
}

// renewal is a stream of one request and its answer.
type renewal struct {
	grpc.ClientStream
	ask   func(*pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error)
	asked *pb.LeaseKeepAliveRequest
}

func (s *renewal) Send(r *pb.LeaseKeepAliveRequest) error {
	s.asked = r
	return nil
}

func (s *renewal) Recv() (*pb.LeaseKeepAliveResponse, error) { return s.ask(s.asked) }

func (s *renewal) CloseSend() error { return nil }
