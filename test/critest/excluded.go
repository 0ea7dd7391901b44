package critest

var excluded = Excluded{}
