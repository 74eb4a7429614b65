using System.Text;
using Xunit;

namespace Aerostat.Machine.Tests;

public sealed class ConfigurationTests
{
    [Theory]
    [InlineData("1048576", 1UL << 20)]
    [InlineData("512M", 512UL << 20)]
    [InlineData("512m", 512UL << 20)]
    [InlineData("2G", 2UL << 30)]
    [InlineData("2GiB", 2UL << 30)]
    [InlineData("64KB", 64UL << 10)]
    [InlineData("1T", 1UL << 40)]
    [InlineData("0", 0UL)]
    public void SizesParse(string text, ulong expected) => Assert.Equal(expected, MemorySize.Parse(text, "--memory"));

    [Theory]
    [InlineData("")]
    [InlineData("M")]
    [InlineData("-1M")]
    [InlineData("1.5G")]
    [InlineData("12Q")]
    [InlineData("0x1000")]
    [InlineData("18446744073709551616")]
    [InlineData("16777216T")]
    public void WhatIsNoSizeSaysSo(string text) =>
        Assert.StartsWith("--memory: ", Assert.Throws<ConfigurationException>(() => MemorySize.Parse(text, "--memory")).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData(512UL << 20, "512M")]
    [InlineData(1536UL << 20, "1536M")]
    [InlineData(4097UL, "4097")]
    [InlineData(0UL, "0")]
    public void SizesPrintExactly(ulong bytes, string expected)
    {
        Assert.Equal(expected, MemorySize.Format(bytes));
        Assert.Equal(bytes, MemorySize.Parse(expected, "size"));
    }

    [Fact]
    public void DevicesParse()
    {
        Assert.Equal(new DebugExitOptions(), DeviceOptions.Parse("debug-exit"));
        Assert.Equal(new DebugExitOptions { Port = 0x501 }, DeviceOptions.Parse("debug-exit,port=0x501"));
        Assert.Equal(new DebugExitOptions { Port = 244 }, DeviceOptions.Parse("debug-exit,port=244"));
    }

    [Fact]
    public async Task TheTranscriptFindsTextsInOrder()
    {
        SerialTranscript transcript = new();
        Task<bool> login = transcript.WaitForAsync("login:", TestContext.Current.CancellationToken), prompt = transcript.WaitForAsync("#", TestContext.Current.CancellationToken);
        transcript.Append("a # then lo"u8);
        Assert.False(login.IsCompleted);
        transcript.Append("gin: "u8);
        Assert.True(await login);
        Assert.False(prompt.IsCompleted);
        transcript.Append("# "u8);
        Assert.True(await prompt);
        Task<bool> never = transcript.WaitForAsync("#", TestContext.Current.CancellationToken);
        transcript.Close();
        Assert.False(await never);
        Assert.Equal("a # then login: # ", transcript.Text);
    }

    [Fact]
    public async Task TheTranscriptForgetsTheOldest()
    {
        SerialTranscript transcript = new(limit: 100);
        for (int i = 0; i < 100; i++)
            transcript.Append(Encoding.ASCII.GetBytes($"line {i}\n"));
        Assert.InRange(transcript.Text.Length, 1, 100);
        Assert.EndsWith("line 99\n", transcript.Text, StringComparison.Ordinal);
        Assert.True(await transcript.WaitForAsync("line 99", TestContext.Current.CancellationToken));
        transcript.Append(new byte[1000]);
        Assert.Equal(100, transcript.Text.Length);
    }
}
