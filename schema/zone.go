package schema

import (
	"errors"
	"strings"
	_ "time/tzdata" // the zones that expressions name, where the machine has none

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// zoneBytesMax bounds the name of a time zone; the longest there is has 32 bytes.
const zoneBytesMax = 64

// zoned are the functions that take the name of a time zone, with their overloads.
var zoned = [...][2]string{
	{overloads.TimeGetFullYear, overloads.TimestampToYearWithTz},
	{overloads.TimeGetMonth, overloads.TimestampToMonthWithTz},
	{overloads.TimeGetDayOfYear, overloads.TimestampToDayOfYearWithTz},
	{overloads.TimeGetDayOfMonth, overloads.TimestampToDayOfMonthZeroBasedWithTz},
	{overloads.TimeGetDate, overloads.TimestampToDayOfMonthOneBasedWithTz},
	{overloads.TimeGetDayOfWeek, overloads.TimestampToDayOfWeekWithTz},
	{overloads.TimeGetHours, overloads.TimestampToHoursWithTz},
	{overloads.TimeGetMinutes, overloads.TimestampToMinutesWithTz},
	{overloads.TimeGetSeconds, overloads.TimestampToSecondsWithTz},
	{overloads.TimeGetMilliseconds, overloads.TimestampToMillisecondsWithTz},
}

// zonedFunctions are CEL's own but for the names of zones that they take: package time
// looks for a name among the files of the machine, and "Local" is another zone on each.
func zonedFunctions() cel.EnvOption {
	return func(env *cel.Env) (*cel.Env, error) {
		var err error
		for _, f := range zoned {
			function, overload := f[0], f[1]
			of := cel.Function(function, cel.MemberOverload(overload, []*cel.Type{cel.TimestampType, cel.StringType}, cel.IntType,
				cel.BinaryBinding(func(moment, zone ref.Val) ref.Val {
					at, ok := moment.(types.Timestamp)
					if !ok {
						return types.MaybeNoSuchOverloadErr(moment)
					}
					name, ok := zone.(types.String)
					if !ok {
						return types.MaybeNoSuchOverloadErr(zone)
					}
					if err := checkZone(string(name)); err != nil {
						return types.WrapErr(err)
					}
					return at.Receive(function, overload, []ref.Val{name})
				})))
			if env, err = of(env); err != nil {
				return nil, err
			}
		}
		return env, nil
	}
}

// checkZone says what is wrong with the name of a time zone, whether there is such a
// zone or not. An offset such as +01:00 is taken as well.
func checkZone(name string) error {
	strange := strings.ContainsFunc(name, func(r rune) bool {
		return r != '+' && r != '-' && r != '/' && r != ':' && (r > 0x7F || !isNameByte(byte(r)))
	})
	if len(name) > zoneBytesMax || strange || name == "Local" {
		return errors.New(`a time zone is named as in "Europe/Berlin" or "UTC", or given as an offset such as "+01:00"`)
	}
	return nil
}
