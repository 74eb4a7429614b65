using System.Reflection;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace Aerostat.State;

/// <summary>The state of one part of a machine, written down.</summary>
/// <param name="Name">Which part: unique in the machine and stable ("pit", "vcpu0").</param>
/// <param name="Kind">Name of the shape (<see cref="SavedStateAttribute.Name"/>).</param>
/// <param name="Version">Version of the shape.</param>
/// <param name="Data">The state.</param>
public sealed record SavedElement(string Name, string Kind, int Version, JsonElement Data);

/// <summary>A part of a machine whose state can be written down and put back, whatever its shape.</summary>
public abstract class StateElement
{
    private protected StateElement(string name) => Name = name;

    /// <summary>Which part.</summary>
    public string Name { get; }

    /// <summary>Name and version of its shape.</summary>
    public abstract SavedStateAttribute Shape { get; }

    /// <summary>Writes the state down. The machine is paused.</summary>
    public abstract SavedElement Save();

    /// <summary>Puts a state back. The machine is paused.</summary>
    /// <exception cref="SavedStateException">It is not a state of this part, or makes no sense.</exception>
    public abstract void Restore(SavedElement saved);

    /// <summary>Makes the element of a part.</summary>
    /// <param name="name">Unique in the machine.</param>
    /// <param name="target">The part.</param>
    /// <param name="shape">
    /// How its state is written; the type has a <see cref="SavedStateAttribute"/>. Asked when a state is saved or restored, for it takes a while to make.
    /// </param>
    public static StateElement Of<TState>(string name, ISavable<TState> target, Func<JsonTypeInfo<TState>> shape)
        where TState : class =>
        new Typed<TState>(name, target, shape);

    private sealed class Typed<TState>(string name, ISavable<TState> target, Func<JsonTypeInfo<TState>> shape) : StateElement(name)
        where TState : class
    {
        public override SavedStateAttribute Shape =>
            field ??= typeof(TState).GetCustomAttribute<SavedStateAttribute>() ?? throw new InvalidOperationException($"{typeof(TState).Name} has no name and version");

        public override SavedElement Save() => new(Name, Shape.Name, Shape.Version, JsonSerializer.SerializeToElement(target.Save(), shape()));

        public override void Restore(SavedElement saved)
        {
            ArgumentNullException.ThrowIfNull(saved);
            if (saved.Kind != Shape.Name)
                throw new SavedStateException($"'{Name}' is a {Shape.Name}, and its saved state is that of a {saved.Kind}");
            if (saved.Version > Shape.Version)
                throw new SavedStateException($"the state of '{Name}' has version {saved.Version}, and this program knows versions up to {Shape.Version}: use a newer one");
            if (saved.Version < Shape.Oldest)
                throw new SavedStateException($"the state of '{Name}' has version {saved.Version}, and this program knows versions {Shape.Oldest} to {Shape.Version}: use an older one");
            try
            {
                target.Restore(saved.Data.Deserialize(shape()) ?? throw new SavedStateException($"the state of '{Name}' is empty"));
            }
            catch (Exception e) when (e is not (SavedStateException or OutOfMemoryException))
            {
                // Whatever a part does with values that it never wrote itself: the machine it belongs to is not started.
                throw new SavedStateException($"the state of '{Name}' cannot be restored: {e.Message}", e);
            }
        }
    }
}

/// <summary>A saved state does not fit, or cannot be taken. The message is for people.</summary>
public sealed class SavedStateException : Exception
{
    /// <summary>Says what is wrong.</summary>
    public SavedStateException(string message)
        : base(message)
    {
    }

    /// <summary>Says what is wrong, and what told of it.</summary>
    public SavedStateException(string message, Exception inner)
        : base(message, inner)
    {
    }
}
