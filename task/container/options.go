package container

import (
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// OptionsURL is the type of CreateTaskRequest.Options that this runtime takes;
// without options it takes the defaults.
const OptionsURL = "containerd.runc.v1.Options"

// parse reads the options. BinaryName, Root and ShimCgroup are about a runtime
// that is executed, and mean nothing here.
func parse(a *anypb.Any) (*options.Options, error) {
	o := &options.Options{}
	if a == nil {
		return o, nil
	}
	if a.TypeUrl != OptionsURL && a.TypeUrl != "type.googleapis.com/"+OptionsURL {
		return nil, invalid("options of type %s: containers take %s", a.TypeUrl, OptionsURL)
	}
	if err := proto.Unmarshal(a.Value, o); err != nil {
		return nil, invalid("options of type %s: %v", a.TypeUrl, err)
	}
	return o, nil
}
